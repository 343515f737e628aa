"""`fluxpool completion`: the script by which a shell completes commands, options and their values."""

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # typer has no public name for it

from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, write_result


class Shell(StrEnum):
    """Shells whose completion typer writes."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@with_option_groups
def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")], *, output: OutputOptions) -> None:
    """Print the completion script of a shell.

    For bash: source <(fluxpool completion bash). For zsh: fluxpool completion zsh > "${fpath[1]}/_fluxpool". For fish:
    fluxpool completion fish | source.
    """
    script = get_completion_script(prog_name="fluxpool", complete_var="_FLUXPOOL_COMPLETE", shell=shell.value)
    lines = script.split("\n")
    write_result(Result(document={"shell": shell.value, "script": script}, parts=lines, names=lines), output)
