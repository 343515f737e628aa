"""Where a command writes: results to standard output, progress and complaints to standard error.

Owns the two consoles and the form of results. Colours and live displays appear on a terminal only; `NO_COLOR` turns
colours off (rich honours it).
"""

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


class OutputFormat(StrEnum):
    """Form of a command's result on standard output."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="Form of the result on standard output.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for --output json.")]


def chosen_format(output: OutputFormat, *, as_json: bool) -> OutputFormat:
    """The format of `--output` and `--json` together."""
    return OutputFormat.JSON if as_json else output


def results_console() -> Console:
    """Standard output, for people."""
    return Console(highlight=False, soft_wrap=True)


def progress_console() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line of progress, as it is, on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def write_json(document: Any) -> None:
    """One JSON document on standard output, followed by a line end."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without frames, whose cells are shown as they are."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table
