"""Output of commands: results to standard output, progress and errors to standard error.

Owns the rule that no text controls the terminal: text of a record, a gateway's answer, a log or an argument passes
`visible` first. Owns the form of tables; `output` writes results with it. Live displays appear on a terminal only; a
set `NO_COLOR` turns every style off.
"""

import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_GAP: Final = "  "
_NARROWEST_LAST_COLUMN: Final = 24
"""Below this many cells words of an ordinary length no longer fit; the last column then gets lines of its own."""
_DUMB_TERMINALS: Final = ("dumb", "unknown")
_SHOW_CURSOR: Final = b"\x1b[?25h\r\n"


def utc_text(moment: datetime) -> str:
    """A moment for a table, UTC to the millisecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def minute_text(moment: datetime | None) -> str:
    """A moment for a table, UTC to the minute; a dash when there is none."""
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


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


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, optional: Sequence[str] = ()
) -> tuple[list[str], tuple[str, ...]]:
    """The lines of a table, and the columns that were left out to fit into `width` cells (None: no limit).

    Words are never divided: what does not fit is continued below its column, and a longer word sticks out.
    """
    cells = [[_encodable(visible(cell)) for cell in row] for row in rows]
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


def _encodable(text: str) -> str:
    """The text as a terminal that lacks some of its characters gets it: escapes are wider than what they stand for."""
    encoding = sys.stdout.encoding or "utf-8"
    return text if text.isascii() else text.encode(encoding, errors="backslashreplace").decode(encoding)


def _row_lines(head: str, last: str, *, start: int, width: int | None) -> list[str]:
    if width is None or start + cell_len(last) <= width:
        return [(head + last).rstrip(" ")]
    room, longest = width - start, max(map(cell_len, last.split(" ")))
    # A word that is too long for the column, such as an id, gets a line of its own where that is long enough.
    if room >= _NARROWEST_LAST_COLUMN and (longest <= room or longest > width - len(_GAP)):
        first, *others = _wrapped(last, room)
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


def _write_error(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def live_console(*, stderr: bool = True) -> Console:
    """Standard error or output, for live displays; a terminal only if lines on it can be written again."""
    # `no_color` of rich keeps bold and dim; without a colour system there is no style at all.
    color_system: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    stream = sys.stderr if stderr else sys.stdout
    # On a dumb terminal `Live` would show nothing before its end; with FORCE_COLOR it would redraw in a file.
    is_terminal = stream.isatty() and os.environ.get("TERM") not in _DUMB_TERMINALS
    if is_terminal:
        _show_cursor_at_sigterm(stream)
    return Console(
        stderr=stderr,
        highlight=False,
        soft_wrap=True,
        emoji=False,
        markup=False,
        color_system=color_system,
        force_terminal=is_terminal,
    )


def _show_cursor_at_sigterm(stream: TextIO) -> None:
    """Show the cursor, which live displays hide, when SIGTERM ends the program: `timeout` sends it."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread() or not is_free:
        return

    def end(number: int, _frame: object) -> None:
        os.write(stream.fileno(), _SHOW_CURSOR)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end)


def shown_text(text: str, *, style: str = "") -> Text:
    """Text for a live display."""
    return Text(visible(text), style=style)


def worker_count(count: int) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} worker{'' if count == 1 else 's'}"
