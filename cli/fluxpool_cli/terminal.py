"""Output of commands: results to standard output, progress and errors to standard error.

Owns the rule that no text controls the terminal: text of a record, a gateway's answer, a log or an argument passes
`visible` first. Owns the form of tables and JSON documents. Live displays appear on
a terminal only; a set `NO_COLOR` turns every style off.
"""

import json
import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP: Final = "  "
_NARROWEST_LAST_COLUMN: Final = 24
"""Below this many cells words of an ordinary length no longer fit; the last column then gets lines of its own."""


JsonOption = Annotated[bool, typer.Option("--json", help="Short for --output json.")]


class OutputFormat(StrEnum):
    """Form of a command's result on standard output."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """`--output` and `--json`."""

    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="Form of the result on standard output.", show_default=True)
    ] = OutputFormat.TABLE
    as_json: JsonOption = False

    @property
    def json(self) -> bool:
        """Whether the result is a JSON document."""
        return self.as_json or self.output is OutputFormat.JSON


def utc_text(moment: datetime) -> str:
    """A moment for a table, UTC to the millisecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def visible(text: str) -> str:
    r"""The text with everything a terminal could obey, or that could forge a line, written as an escape (`\x1b`).

    Escaped are control and format characters, line and paragraph separators, lone surrogates and what Unicode has not
    assigned; blanks of every width are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def visible_lines(text: str) -> list[str]:
    """The lines of a text, each made `visible`; all but the first are indented, so that none can pass for ours."""
    first, *others = text.rstrip("\n").split("\n")
    return [visible(first), *(f"  {visible(line)}".rstrip(" ") for line in others)]


def say(line: str) -> None:
    """One line of progress on standard error."""
    _write_error(visible(line) + "\n")


def say_paragraph(text: str) -> None:
    """A message of one or more lines on standard error."""
    _write_error("\n".join(visible_lines(text)) + "\n")


def write_line(line: str = "") -> None:
    """One line of a result on standard output."""
    sys.stdout.write(visible(line) + "\n")
    sys.stdout.flush()


def write_paragraph(text: str) -> None:
    """A part of a result that has lines of its own, such as a stored value."""
    sys.stdout.write("".join(f"  {visible(line)}".rstrip(" ") + "\n" for line in text.split("\n")))
    sys.stdout.flush()


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, optional: Sequence[str] = ()) -> None:
    """A table on standard output; a terminal that is too narrow loses `optional` columns, the first one first.

    In a pipe every column is there, and each row is one line of whatever width.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines, hidden = table_lines(columns, list(rows), width=width, optional=optional)
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()
    if hidden:
        say(f"not shown at this width: {', '.join(hidden)}; widen the terminal, or use a pipe or --json")


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, optional: Sequence[str] = ()
) -> tuple[list[str], tuple[str, ...]]:
    """The lines of a table, and the columns that were left out to fit into `width` cells (None: no limit).

    Words are never divided: what does not fit is continued below its column, and a longer word sticks out.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    shown = list(range(len(columns)))
    hidden: list[str] = []

    def widths() -> list[int]:
        return [max(map(cell_len, (columns[index], *(row[index] for row in cells)))) for index in shown]

    for name in optional:
        *others, last = widths()
        if width is None or sum(others) + len(_GAP) * len(others) + min(last, _NARROWEST_LAST_COLUMN) <= width:
            break
        shown.remove(columns.index(name))
        hidden.append(name)
    *others, last = widths()
    start = sum(others) + len(_GAP) * len(others)
    lines = []
    for row in (columns, *cells):
        picked = [row[index] for index in shown]
        head = "".join(_padded(cell, wide) + _GAP for cell, wide in zip(picked, others, strict=False))
        lines += _row_lines(head, picked[-1], start=start, width=width)
    return lines, tuple(hidden)


def _row_lines(head: str, last: str, *, start: int, width: int | None) -> list[str]:
    if width is None or start + cell_len(last) <= width:
        return [(head + last).rstrip(" ")]
    if width - start >= _NARROWEST_LAST_COLUMN:
        first, *others = _wrapped(last, width - start)
        return [(head + first).rstrip(" "), *(" " * start + line for line in others)]
    return [*([head.rstrip(" ")] if head else []), *(f"{_GAP}{line}" for line in _wrapped(last, width - len(_GAP)))]


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def write_json(document: Any) -> None:
    r"""One JSON document on standard output, followed by a line end; it shows control characters as `\u009b`."""
    ascii_only = not (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(_finite(document), indent=2, ensure_ascii=ascii_only, allow_nan=False)
    sys.stdout.write("".join(map(_json_visible, text)) + "\n")
    sys.stdout.flush()


def _json_visible(character: str) -> str:
    if character == "\n" or visible(character) == character:
        return character
    units = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _finite(value: Any) -> Any:
    """The value with null in place of numbers that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(name): _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _write_error(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def progress_console() -> Console:
    """Standard error, for live displays."""
    # `no_color` of rich keeps bold and dim; without a colour system there is no style at all.
    color_system: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False, color_system=color_system)


def shown_text(text: str, *, style: str = "") -> Text:
    """Text for a live display."""
    return Text(visible(text), style=style)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without frames for a live display."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(shown_text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(shown_text, row))
    return table


def worker_count(count: int) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} worker{'' if count == 1 else 's'}"
