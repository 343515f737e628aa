"""Deletes rows of the task store whose records Kafka has deleted, and old usage, so that the file keeps its size.

Kafka deletes the beginning of a partition's log. When a log begins later than before, all rows are looked at once, a
part every second, so that the projection keeps its speed. Which record counts is said in `store.task_state`.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from fluxpool_gateway.store.task_state import Position, TaskKey
from fluxpool_gateway.store.task_store import TaskStoreWriter

STARTS_SECONDS: Final = 10.0
"""Between questions for the starts of the logs: one request to each broker, and retention times are hours."""
SWEEP_SECONDS: Final = 1.0
SWEPT_ROWS: Final = 5_000
"""Looked at each time, in about 20 ms."""
_BEFORE_ALL: Final = TaskKey("", "")

logger = structlog.stdlib.get_logger(__name__)


class RetentionSweep:
    """The sweep of one run of the projector, called between its batches."""

    def __init__(
        self,
        store: TaskStoreWriter,
        *,
        read_starts: Callable[[], Awaitable[Mapping[Position, int]]],
        in_thread: Callable[[Callable[[], tuple[TaskKey | None, int]]], Awaitable[tuple[TaskKey | None, int]]],
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`read_starts` asks the brokers, and may be empty; `in_thread` runs a transaction in the store's thread."""
        self._store = store
        self._read_starts = read_starts
        self._in_thread = in_thread
        self._clock = clock
        self._now_ms = now_ms
        self._starts: Mapping[Position, int] = {}
        self._swept_to: TaskKey | None = None
        """None while no sweep is under way."""
        self._deleted = 0
        self._due_at = 0.0

    async def step(self) -> None:
        """Do what is due, if anything. Only while the store has everything that Kafka has.

        Raises SQLAlchemy's `DatabaseError` or `DamagedStoreError` when the store fails.
        """
        if self._clock() < self._due_at:
            return
        if self._swept_to is None:
            starts = await self._read_starts()
            if not starts or starts == self._starts:
                self._due_at = self._clock() + STARTS_SECONDS
                return
            self._starts, self._swept_to, self._deleted = starts, _BEFORE_ALL, 0
        after, starts = self._swept_to, self._starts
        self._swept_to, deleted = await self._in_thread(lambda: self._delete(starts, after=after))
        self._deleted += deleted
        self._due_at = self._clock() + SWEEP_SECONDS
        if self._swept_to is None and self._deleted:
            logger.info("expired_tasks_deleted", tasks=self._deleted)

    def _delete(self, starts: Mapping[Position, int], *, after: TaskKey) -> tuple[TaskKey | None, int]:
        """One part of a sweep; the last one deletes expired dead letters and old usage as well. Blocks."""
        swept_to, deleted = self._store.delete_expired(starts, after=after, rows=SWEPT_ROWS)
        if swept_to is None:
            self._store.delete_expired_dead_letters(starts)
            self._store.delete_old_usage(now_ms=self._now_ms())
        return swept_to, deleted
