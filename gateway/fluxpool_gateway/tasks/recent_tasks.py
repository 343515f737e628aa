"""What this process accepted lately: answers a poll that is quicker than the projection.

A cache and no more: bounded in count and age, lost with the process, never asked before the store.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

MAX_TASKS = 50_000
"""About 15 MB."""
MAX_AGE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RecentTask:
    """One accepted request."""

    accepted_at: datetime
    priority: str
    expires_at_seconds: float


class RecentTasks:
    """The accepted requests of the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._tasks: OrderedDict[str, RecentTask] = OrderedDict()

    def add(self, request_id: str, *, accepted_at: datetime, priority: str) -> None:
        """Remember a request whose record the broker has acknowledged."""
        tasks = self._tasks
        tasks.setdefault(request_id, RecentTask(accepted_at, priority, self._clock() + MAX_AGE_SECONDS))
        if len(tasks) > MAX_TASKS:
            tasks.popitem(last=False)

    def get(self, request_id: str) -> RecentTask | None:
        """The request, unless it was forgotten or never accepted here."""
        task = self._tasks.get(request_id)
        if task is not None and task.expires_at_seconds <= self._clock():
            del self._tasks[request_id]
            return None
        return task
