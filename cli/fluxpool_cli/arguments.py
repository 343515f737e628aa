"""Rules for arguments that every command shares: what none of them can mean is refused before it does anything."""

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from fluxpool_cli.terminal import visible

_OPTION = re.compile(r"-\w|--[a-z][a-z-]*")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse text in a foreign encoding and empty values of options; raises `typer.BadParameter`."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter(
                f"{visible(argument)} is not text in the encoding of this terminal ({sys.getfilesystemencoding()}); "
                "convert it to UTF-8",
                param_hint=before if _OPTION.fullmatch(before) else "an argument",
            ) from None
        # Often a variable of a script that is not set; taken as absent it would mean something else.
        empty = before if not argument else option if equals and not value else ""
        if _OPTION.fullmatch(empty):
            raise typer.BadParameter("must not be empty; leave the option out instead", param_hint=empty)


def finite(value: float | None) -> float | None:
    """The number of an option, or its absence; raises `typer.BadParameter` for what is no number."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} must be a finite number, such as 3.5")
    return value


def printable_path(path: Path | None) -> Path | None:
    """The path of an option; raises `typer.BadParameter` for one with line ends or other control characters."""
    if path is not None and not str(path).isprintable():
        raise typer.BadParameter(f"{visible(str(path))} must not have control characters in its name; choose another")
    return path
