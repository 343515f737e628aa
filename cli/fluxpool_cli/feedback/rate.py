"""`fluxpool rate`."""

from enum import StrEnum
from typing import Annotated

import typer

from fluxpool_cli.feedback.options import RaterOption, aspects_of, image_named
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, write_result
from fluxpool_client import RatingFields


class Thumb(StrEnum):
    """A judgement without a number."""

    UP = "up"
    DOWN = "down"


@with_option_groups
def rate(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Id of a task that succeeded; ID/1: its second image.")],
    score: Annotated[int | None, typer.Argument(min=1, max=5, help="1 to 5.")] = None,
    *,
    thumb: Annotated[Thumb | None, typer.Option(help="up or down.")] = None,
    aspect: Annotated[
        list[str] | None,
        typer.Option(help="aesthetic=4, alignment=5 (with the prompt) or fidelity=3; may be repeated."),
    ] = None,
    artifacts: Annotated[int | None, typer.Option(min=0, max=5, help="Visible defects: 0 none, 5 spoiled.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word for it; may be repeated.")] = None,
    comment: Annotated[str | None, typer.Option(help="At most 1,000 characters.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the rating back.")] = False,
    rater: RaterOption = None,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Rate an image. A second rating by the same rater replaces the first."""
    request_id, index = image_named(image)
    fields: RatingFields = {"index": index}
    if score is not None:
        fields["score"] = score
    if thumb is not None:
        fields["thumb"] = 1 if thumb is Thumb.UP else -1
    if aspects := aspects_of(aspect):
        wrong = [value for value in aspects.values() if not (value.isdecimal() and value.isascii())]
        if wrong:
            raise typer.BadParameter(f"{wrong[0]!r} must be a number from 1 to 5", param_hint="--aspect")
        fields["aspects"] = {name: int(value) for name, value in aspects.items()}
    if artifacts is not None:
        fields["artifacts"] = artifacts
    if tag:
        fields["tags"] = tag
    if comment is not None:
        fields["comment"] = comment
    if remove and len(fields) > 1:
        raise typer.BadParameter("takes the rating back; leave out what it says", param_hint="--remove")
    with gateway.client() as client:
        if remove:
            client.delete_rating(request_id, index=index, rater=rater)
            document = {"request_id": request_id, "index": index, "removed": True}
            line = f"{request_id}/{index} rating removed"
            write_result(Result(document=document, parts=[line], names=[f"{request_id}/{index}"]), output)
            return
        if rater is not None:
            fields["rater"] = rater
        rating = client.rate(request_id, **fields)
    name = f"{rating.request_id}/{rating.index}"
    write_result(Result(document=rating.model_dump(mode="json"), parts=[f"{name} rated"], names=[name]), output)
