"""The records of one retry-topic partition, by the lane topics that they came from. Pure.

Owns what is kept of records and for how long. One instance serves all pools that share the topic, so that each record
is fetched once, by `retry_scan`. Must not know of groups or pools.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fluxpool_contract.kafka import due_seconds

MAX_ENTRIES: Final = 2000
"""Limit for one origin in one partition; the oldest are dropped. Enough to scale any pool to its maximum."""
MAX_IDLE_ORIGINS: Final = 10_000
"""Limit of origins without a pool: pools that do not exist yet, and arbitrary header values."""


@dataclass(frozen=True, slots=True)
class RetryEntry:
    """One record of a retry topic; times in seconds since 1970."""

    offset: int
    arrived_seconds: float
    not_before_seconds: float | None


class RetryLog:
    """The records from the log start up to `position`."""

    def __init__(self, *, position: int) -> None:
        self.position = position
        """The next offset to read."""
        self._asked: dict[str, list[RetryEntry]] = {}
        self._idle: OrderedDict[str, list[RetryEntry]] = OrderedDict()
        self._has_dropped = False

    def add(self, origin: str | None, entry: RetryEntry) -> None:
        """Add the next record; one without an origin belongs to no pool."""
        self.position = entry.offset + 1
        if origin is None:
            return
        entries = self._asked.get(origin)
        if entries is None:
            entries = self._idle.setdefault(origin, [])
            if len(self._idle) > MAX_IDLE_ORIGINS:
                self._idle.popitem(last=False)
                self._has_dropped = True
        entries.append(entry)
        if len(entries) > MAX_ENTRIES:
            del entries[0]

    def pass_over(self, offset: int) -> None:
        """All records before this offset were added."""
        self.position = max(self.position, offset)

    def knows(self, origins: Iterable[str]) -> bool:
        """Whether all records of these origins are known; from now on they are never dropped."""
        is_known = True
        for origin in origins:
            if origin not in self._asked:
                is_known = is_known and not self._has_dropped
                self._asked[origin] = self._idle.pop(origin, [])
        return is_known

    def restarted(self, *, position: int) -> "RetryLog":
        """An empty log for the same pools, to read the partition again."""
        again = RetryLog(position=position)
        again.knows(self._asked)
        return again

    def forget_before(self, offset: int, origins: Iterable[str]) -> None:
        """The pool that serves these origins has relayed all its records before the offset."""
        for origin in origins:
            entries = self._asked.get(origin)
            if entries and entries[0].offset < offset:
                self._asked[origin] = [entry for entry in entries if entry.offset >= offset]

    def due(self, origins: Iterable[str], now_seconds: float, *, delay_seconds: float) -> list[int]:
        """The offsets of these origins' records that are due: a worker relays them by now."""
        return [
            entry.offset
            for origin in origins
            for entry in self._asked.get(origin, ())
            if now_seconds
            >= due_seconds(
                arrived_seconds=entry.arrived_seconds,
                not_before_seconds=entry.not_before_seconds,
                delay_seconds=delay_seconds,
            )
        ]
