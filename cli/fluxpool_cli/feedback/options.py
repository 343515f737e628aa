"""Options and values that the commands of feedback share."""

from typing import Annotated

import typer

RaterOption = Annotated[
    str | None,
    typer.Option(help="Who judges; the gateway stores a pseudonym. By default the API key of the request."),
]


def image_named(text: str) -> tuple[str, int]:
    """Request id and number of an image, out of `ID` or `ID/1`; raises `typer.BadParameter`."""
    request_id, slash, number = text.partition("/")
    if slash and not (number.isdecimal() and number.isascii()):
        raise typer.BadParameter(f"{text!r} must be the id of a task, or ID/1 for its second image")
    return request_id, int(number) if slash else 0


def aspects_of(given: list[str] | None) -> dict[str, str]:
    """Aspects out of `fidelity=3` each; raises `typer.BadParameter`. The gateway knows which there are."""
    aspects = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} must be aspect=value, such as fidelity=3", param_hint="--aspect")
        aspects[name] = value
    return aspects
