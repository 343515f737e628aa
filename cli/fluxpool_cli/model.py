"""`fluxpool model`: model folders for workers."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, write_result
from fluxpool_cli.terminal import say

app = typer.Typer(no_args_is_help=True, help="Model folders for workers.")


@app.callback()
def _group() -> None:
    """Model folders for workers."""


def tiny_model_command(folder: Path) -> list[str]:
    """The program that writes the tiny checkpoint; another process, because it loads torch."""
    return [sys.executable, "-m", "fluxpool_worker.engine.tiny_checkpoint", str(folder)]


@app.command()
@with_option_groups
def tiny(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.", file_okay=False)], *, output: OutputOptions
) -> None:
    """Write a tiny FLUX checkpoint with random weights (1 MB): the real pipeline, pictures of colourful noise."""
    say(f"writing a tiny FLUX checkpoint to {folder}, which takes some seconds")
    with interruptible("nothing was written"):
        finished = subprocess.run(  # noqa: S603 - our own module
            tiny_model_command(folder),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if finished.returncode:
        last = finished.stderr.strip().splitlines()[-1:] or [f"ended with status {finished.returncode}"]
        raise CommandError(ExitCode.FAILED, f"the tiny checkpoint was not written: {last[0]}")
    made = str(folder.resolve())
    write_result(Result(document={"folder": made}, parts=[made], names=[made]), output)
