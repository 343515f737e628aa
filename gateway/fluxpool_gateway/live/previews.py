"""Previews of tasks for those who watch them in this process; the latest of each task, in memory alone.

It is kept for a while after the last watcher has left: a view that is loaded again shows it at once. Knows nothing of
Kafka (`preview_reader`) and of responses (`task_events`).
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from fluxpool_contract.messages import Preview
from fluxpool_gateway.store.task_state import TaskKey, TaskState

MAX_WATCHED: Final = 50
"""Tasks at once by one reader of a tenant's events: each has two previews of some 15 KB a second at most."""
KEPT_SECONDS: Final = 120.0
"""Since it came. Slow devices need half a minute from one preview to the next."""
MAX_KEPT: Final = 256
"""Of all tenants together: 8 MiB, if each is as large as a preview may be."""


class PreviewView(BaseModel):
    """What an image of a task looks like by now: the data of an event `preview`."""

    request_id: str
    attempt: int
    step: int | None
    """After which of all steps."""
    total_steps: int | None
    index: int
    """Number of the image, from 0."""
    content_type: str
    data: str
    """The file in base64."""


@dataclass(slots=True, eq=False)
class PreviewWatch:
    """The previews of tasks of one tenant, as one watcher takes them: the latest of each that it has not seen."""

    _pending: dict[str, PreviewView] = field(default_factory=dict)
    """By the id of the task, those that came first before the others."""
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, preview: PreviewView) -> None:
        """Another one came; it replaces one of its task that was not taken."""
        self._pending[preview.request_id] = preview
        self._came.set()

    def drop(self, request_id: str) -> None:
        """The task is not watched any more."""
        self._pending.pop(request_id, None)

    async def next(self) -> PreviewView:
        """Wait for the next one."""
        while not self._pending:
            # Cancelled while it waits, it has taken none.
            self._came.clear()
            await self._came.wait()
        return self._pending.pop(next(iter(self._pending)))


class TaskPreviews:
    """All watchers of one process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds."""
        self._clock = clock
        self._watched: dict[TaskKey, set[PreviewWatch]] = {}
        self._is_watched = asyncio.Event()
        self._latest: OrderedDict[TaskKey, tuple[PreviewView, float]] = OrderedDict()
        """With the time at which each came, the oldest first."""

    @property
    def is_watched(self) -> bool:
        """Whether anyone watches any task."""
        return self._is_watched.is_set()

    async def wait_watched(self) -> None:
        """Return when anyone watches any task."""
        await self._is_watched.wait()

    def watches(self, key: TaskKey) -> bool:
        """Whether anyone watches this task."""
        return key in self._watched

    @contextmanager
    def watch(self, key: TaskKey) -> Iterator[PreviewWatch]:
        """Watch a task for a block; a preview that was kept is there at once."""
        with self.watch_several() as several:
            several.add(key)
            yield several.watch

    @contextmanager
    def watch_several(self) -> Iterator["SeveralWatched"]:
        """Watch tasks of one tenant for a block, which says of each when it begins and ends."""
        several = SeveralWatched(self)
        try:
            yield several
        finally:
            several.clear()

    def add(self, key: TaskKey, watch: PreviewWatch) -> None:
        """Begin to show the previews of a task to a watcher."""
        self._watched.setdefault(key, set()).add(watch)
        self._is_watched.set()
        latest, came_at = self._latest.get(key, (None, 0.0))
        if latest is not None and self._clock() - came_at <= KEPT_SECONDS:
            watch.offer(latest)

    def remove(self, key: TaskKey, watch: PreviewWatch) -> None:
        """Show them no more; only what was added."""
        watches = self._watched[key]
        watches.discard(watch)
        if not watches:
            del self._watched[key]
        if not self._watched:
            self._is_watched.clear()

    def evict(self, key: TaskKey) -> None:
        """Keep no preview of a task that does not run."""
        self._latest.pop(key, None)

    def show(self, key: TaskKey, preview: Preview, *, attempt: int, step: int | None, total_steps: int | None) -> None:
        """A preview of a task came. Kept also without a watcher, for the next one."""
        latest = PreviewView(
            request_id=key.request_id,
            attempt=attempt,
            step=step,
            total_steps=total_steps,
            index=preview.index,
            content_type=preview.content_type,
            data=preview.data,
        )
        now = self._clock()
        self._latest[key] = latest, now
        self._latest.move_to_end(key)
        while len(self._latest) > MAX_KEPT or now - next(iter(self._latest.values()))[1] > KEPT_SECONDS:
            self._latest.popitem(last=False)
        for watch in self._watched.get(key, ()):
            watch.offer(latest)


@dataclass(slots=True, eq=False)
class SeveralWatched:
    """Tasks of one tenant that one watcher looks at."""

    previews: TaskPreviews
    watch: PreviewWatch = field(default_factory=PreviewWatch)
    _keys: set[TaskKey] = field(default_factory=set)

    def add(self, key: TaskKey) -> None:
        """Watch a task, unless that is done already, or there are as many as one may watch."""
        if key not in self._keys and len(self._keys) < MAX_WATCHED:
            self._keys.add(key)
            self.previews.add(key, self.watch)

    def discard(self, key: TaskKey) -> None:
        """Watch a task no more, which does not run."""
        self.previews.evict(key)
        if key in self._keys:
            self._keys.remove(key)
            self.previews.remove(key, self.watch)
            self.watch.drop(key.request_id)

    def clear(self) -> None:
        """Watch none any more, whether they run or not."""
        for key in self._keys:
            self.previews.remove(key, self.watch)
        self._keys.clear()


async def previews_until(end: asyncio.Future[Any], watch: PreviewWatch | None) -> AsyncGenerator[PreviewView]:
    """The previews that come before `end` is done, none without a watch; to be closed, which cancels `end`."""
    shown: asyncio.Future[PreviewView] | None = None
    try:
        while not end.done():
            if watch is None:
                await asyncio.wait({end})
                return
            shown = asyncio.ensure_future(watch.next())
            await asyncio.wait({end, shown}, return_when=asyncio.FIRST_COMPLETED)
            # The end goes first: after it there are no previews.
            if not end.done():
                yield shown.result()
    finally:
        pending = [end] if shown is None else [end, shown]
        for waiting in pending:
            waiting.cancel()
        # An error of the wait for the end repeats when the task is read, which answers with it.
        await asyncio.gather(*pending, return_exceptions=True)


def asks_for_previews(task: object) -> bool:
    """Whether the body of a task's record asks for previews; False for a task that the store does not have yet."""
    if not isinstance(task, TaskState) or task.body is None or '"preview"' not in task.body:
        return False
    try:
        return json.loads(task.body).get("preview") is True
    except (ValueError, AttributeError, RecursionError):  # any producer may write any body
        return False
