"""Results that are shown again as they change: in place on a terminal, else one after the other."""

import time
from collections.abc import Callable
from typing import Annotated, Final

import typer
from rich.console import Console, OverflowMethod
from rich.live import Live
from rich.text import Text

from fluxpool_cli.exit_codes import interruptible
from fluxpool_cli.output import OutputFormat, OutputOptions, Result, shown_lines, write_result
from fluxpool_cli.terminal import live_console

INTERVAL_SECONDS: Final = 2.0

WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Show it again whenever it changes, until Ctrl-C.")]


def show(read: Callable[[], Result], output: OutputOptions, *, watch: bool) -> None:
    """Write what `read` returns; with `watch` again whenever it changes, until it is final or Ctrl-C."""
    if not watch:
        write_result(read(), output)
        return
    with interruptible("this only showed it: nothing was changed"):
        console = live_console(stderr=False)
        if output.form is OutputFormat.TABLE and console.is_terminal:
            _redraw(read, console)
        else:
            _repeat(read, output)


def _redraw(read: Callable[[], Result], console: Console) -> None:
    overflow: OverflowMethod = "crop" if console.options.ascii_only else "ellipsis"
    with Live(console=console, auto_refresh=False) as live:
        while True:
            result = read()
            # `shown_lines` has made the text harmless, and fits it into the width.
            lines, _ = shown_lines(result, width=console.width)
            live.update(Text("\n".join([*lines, *result.notes]), no_wrap=True, overflow=overflow), refresh=True)
            if result.final:
                return
            time.sleep(INTERVAL_SECONDS)


def _repeat(read: Callable[[], Result], output: OutputOptions) -> None:
    shown: Result | None = None
    while True:
        result = read()
        if shown is None or result.document != shown.document:
            write_result(result, output)
            shown = result
        if result.final:
            return
        time.sleep(INTERVAL_SECONDS)
