"""The live view of a pool: lag, workers, results; a table that is redrawn in place on a terminal, else lines.

Owns the look; the numbers are the caller's.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table

from fluxpool_cli.terminal import live_console, say, shown_text

_SILENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Displayed(ABC):
    """What `LiveDisplay` shows: its `line`, and on a terminal its rich rendering."""

    recent: Sequence[str] = ()
    """The last results, one line each, newest first; each is shown once."""
    elapsed_seconds: float | None = None
    """Since the start; null for what has none."""

    @abstractmethod
    def line(self) -> str:
        """Everything in one line."""

    @abstractmethod
    def __rich__(self) -> Group:
        """The table of a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot(Displayed):
    """Lag, workers and results of a pool."""

    lag_records: Mapping[str, int]
    """Lag by lane: tasks not committed."""
    workers: Mapping[str, int]
    """Number of workers by state; empty when they are not known."""
    results: Mapping[str, int]
    """Number of tasks by status."""
    plan: str = ""
    """The last plan in a sentence."""

    def line(self) -> str:
        """Lag, workers and results."""
        parts = [f"lag {_pairs(self.lag_records)}"]
        if self.workers:
            parts.append(f"workers {_pairs(self.workers)}")
        parts.append(f"results {_pairs(self.results) or 'none yet'}")
        return " | ".join(parts)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        document = asdict(self)
        if self.elapsed_seconds is None:
            del document["elapsed_seconds"]
        return document

    def __rich__(self) -> Group:
        """The table of the live view; `recent` stays above it, because addresses may be longer than a line."""
        return Group(plain_table(("", ""), self.rows()))

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of the table."""
        return [
            ("lag", _pairs(self.lag_records)),
            ("workers", _pairs(self.workers) or "none"),
            ("results", _pairs(self.results) or "none yet"),
            ("plan", self.plan or "-"),
            *([("time", f"{self.elapsed_seconds:.0f} s")] if self.elapsed_seconds is not None else []),
        ]


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without frames for a live display."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(shown_text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(shown_text, row))
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting(Displayed):
    """What has no numbers yet, but its time."""

    what: str

    def line(self) -> str:
        """What starts."""
        return f"{self.what} ..."

    def __rich__(self) -> Group:
        """The same with the time."""
        return Group(plain_table(("", ""), [(self.line(), f"{self.elapsed_seconds or 0:.0f} s")]))


class LiveDisplay:
    """Shows one snapshot after the other on standard error while it is open."""

    def __init__(self) -> None:
        self._console = live_console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._shown = ""
        self._recent: Sequence[str] = ()
        self._said_at_seconds = time.monotonic()

    def __enter__(self) -> Self:
        """Open."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; the last snapshot stays visible."""
        self.stop()

    def stop(self) -> None:
        """Draw nothing any more; what is noted from now on are lines."""
        if self._live is not None:
            self._live.stop()

    def update(self, snapshot: Displayed) -> None:
        """Show it, if it differs from the last one."""
        line = snapshot.line()
        if self._live is not None:
            for arrived in reversed([item for item in snapshot.recent if item not in self._recent]):
                self.note(arrived)
            self._recent = snapshot.recent
            self._live.update(snapshot, refresh=True)
        elif line != self._shown or self._is_silent_for_long(snapshot):
            elapsed = snapshot.elapsed_seconds
            say(line if line != self._shown or elapsed is None else f"{line} | {elapsed:.0f} s")
            self._said_at_seconds = time.monotonic()
        self._shown = line

    def _is_silent_for_long(self, snapshot: Displayed) -> bool:
        """Whether nothing moved for a while in what counts its time: then that is shown, as a sign of life."""
        return snapshot.elapsed_seconds is not None and time.monotonic() - self._said_at_seconds > _SILENCE_SECONDS

    def note(self, line: str) -> None:
        """A sentence that stays, above the table."""
        if self._live is not None:
            self._console.print(shown_text(line))
        else:
            say(line)


def _pairs(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
