"""The question before something that cannot be undone, and the option that answers it."""

import sys
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def confirm(what: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone; raises `CommandError` (2) without a terminal to ask on."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(ExitCode.USAGE, f"would {what}; add --yes to do it")
    if not typer.confirm(f"{what}?", err=True):
        raise CommandError(ExitCode.USAGE, "nothing was changed")
