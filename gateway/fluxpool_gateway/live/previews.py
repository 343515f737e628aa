"""Previews of tasks for those who watch them in this process; the latest of each task, in memory alone.

Knows nothing of Kafka (`preview_reader`) and of responses (`task_events`).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from fluxpool_contract.messages import Preview
from fluxpool_gateway.store.task_state import TaskKey, TaskState


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
    """The previews of one task, as one watcher takes them: the latest that it has not seen."""

    _pending: PreviewView | None = None
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, preview: PreviewView) -> None:
        """Another one came; it replaces one that was not taken."""
        self._pending = preview
        self._came.set()

    async def next(self) -> PreviewView:
        """Wait for the next one."""
        # Cancelled while it waits, it has taken none.
        await self._came.wait()
        self._came.clear()
        assert self._pending is not None  # noqa: S101 - set before the event
        return self._pending


@dataclass(slots=True, eq=False)
class _Watched:
    watches: set[PreviewWatch] = field(default_factory=set)
    latest: PreviewView | None = None


class TaskPreviews:
    """All watchers of one process."""

    def __init__(self) -> None:
        self._watched: dict[TaskKey, _Watched] = {}
        self._is_watched = asyncio.Event()

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
        """Watch a task for a block; the latest preview is there at once when another one watches it already."""
        watched = self._watched.setdefault(key, _Watched())
        watch = PreviewWatch()
        if watched.latest is not None:
            watch.offer(watched.latest)
        watched.watches.add(watch)
        self._is_watched.set()
        try:
            yield watch
        finally:
            watched.watches.discard(watch)
            if not watched.watches:
                del self._watched[key]
            if not self._watched:
                self._is_watched.clear()

    def show(self, key: TaskKey, preview: Preview, *, attempt: int, step: int | None, total_steps: int | None) -> None:
        """A preview of a task came; nothing happens when nobody watches the task."""
        watched = self._watched.get(key)
        if watched is None:
            return
        watched.latest = PreviewView(
            request_id=key.request_id,
            attempt=attempt,
            step=step,
            total_steps=total_steps,
            index=preview.index,
            content_type=preview.content_type,
            data=preview.data,
        )
        for watch in watched.watches:
            watch.offer(watched.latest)


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
        await asyncio.gather(*pending, return_exceptions=True)


def asks_for_previews(task: object) -> bool:
    """Whether the body of a task's record asks for previews; False for a task that the store does not have yet."""
    if not isinstance(task, TaskState) or task.body is None or '"preview"' not in task.body:
        return False
    try:
        return json.loads(task.body).get("preview") is True
    except (ValueError, AttributeError, RecursionError):  # any producer may write any body
        return False
