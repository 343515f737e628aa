"""`fluxpool compare`."""

from typing import Annotated

import typer

from fluxpool_cli.feedback.options import RaterOption, aspects_of, image_named
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import finite, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, write_result
from fluxpool_client import ComparisonFields
from fluxpool_contract.messages import Preference


@with_option_groups
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Id of a task that succeeded; ID/1: its second image.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another image of the same prompt.")],
    *,
    prefer: Annotated[Preference, typer.Option(help="a, b, tie or both_bad.")],
    aspect: Annotated[
        list[str] | None,
        typer.Option(help="aesthetic=a, alignment=tie (with the prompt) or fidelity=b; may be repeated."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="How long it took.", callback=finite)] = None,
    rater: RaterOption = None,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Say which of two images of a prompt is better. A second judgement by the same rater replaces the first."""
    fields: ComparisonFields = {}
    if aspects := aspects_of(aspect):
        fields["aspects"] = aspects
    if seconds is not None:
        fields["seconds"] = seconds
    if rater is not None:
        fields["rater"] = rater
    with gateway.client() as client:
        comparison = client.compare(image_named(a), image_named(b), prefer.value, **fields)
    sides = {side: f"{image.request_id}/{image.index}" for side, image in (("a", comparison.a), ("b", comparison.b))}
    line = f"{sides['a']} {sides['b']} {sides.get(comparison.preferred, comparison.preferred)}"
    write_result(Result(document=comparison.model_dump(mode="json"), parts=[line], names=[*sides.values()]), output)
