"""The events of one task: its state, then each change of it, until it has ended.

An event holds the whole state, as `GET` of the task shows it, and its id is the version of the task: a number that only
grows, and is the same on every process and after a rebuild of the store. So a client continues on any process, and one
that reads slowly, or was away, misses only states that a later one has replaced. Previews come between the states of a
task that asks for them, without ids.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Final

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from fluxpool_gateway.http.problem import ProblemCode, ProblemError, invalid_header
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.live.event_response import Events
from fluxpool_gateway.live.previews import PreviewWatch, TaskPreviews, asks_for_previews, previews_until
from fluxpool_gateway.store.task_state import TaskState, TaskStatus, version_of
from fluxpool_gateway.tasks.lookup import RecentTask, TaskLookup
from fluxpool_gateway.tasks.view import TaskView
from fluxpool_gateway.tasks.waiting import TaskWaits

SNAPSHOT: Final = "snapshot"
PROGRESS: Final = "progress"
PREVIEW: Final = "preview"
_EVENT_ID: Final = re.compile(r"[0-9]{1,19}")
_PAUSE_SECONDS: Final = 1.0
_ACCEPTED: Final = version_of(status=TaskStatus.QUEUED, epoch=0, attempt=1)
"""Of a task that this process accepted and the store does not have yet: the version that it will have there."""

Found = TaskState | RecentTask


def known_version(last_event_id: str | None) -> int | None:
    """The version that a client has; raises `ProblemError` (400)."""
    if not last_event_id:
        return None
    if not _EVENT_ID.fullmatch(last_event_id):
        raise invalid_header(
            "Last-Event-ID", "is not the id of an event of a task; leave it out to begin with its state"
        )
    return int(last_event_id)


def version_found(found: Found) -> int:
    """How far the task is."""
    return found.version if isinstance(found, TaskState) else _ACCEPTED


def has_all(found: Found, known: int | None) -> bool:
    """Whether a client that has this version has the end of the task."""
    return isinstance(found, TaskState) and found.status.terminal and found.version == known


async def task_events(
    request_id: str,
    found: Found,
    known: int | None,
    *,
    lookup: TaskLookup,
    waits: TaskWaits,
    caller: Caller,
    view: Callable[[Found], TaskView],
    previews: TaskPreviews,
) -> Events:
    """The events from the state on that was found, or what came after the version that the client knows.

    Raises `ProblemError` when the task is there no more.
    """
    with contextlib.ExitStack() as watching:
        watch: PreviewWatch | None = None
        version = version_found(found)
        if known is None or version < known:
            # A version behind the client's: the store was built again from what Kafka still has.
            yield format_event(SNAPSHOT, str(version), view(found))
        elif version > known:
            yield format_event(name_of(found), str(version), view(found))
        while not (isinstance(found, TaskState) and found.status.terminal):
            if watch is None and asks_for_previews(found):
                watch = watching.enter_context(previews.watch(found.key))
            changed = asyncio.ensure_future(waits.later_than(found.key, version))
            async with contextlib.aclosing(previews_until(changed, watch)) as shown:
                async for preview in shown:
                    yield format_sse_event(event=PREVIEW, data_str=preview.model_dump_json())
            changed.result()
            try:
                found = await lookup.find(request_id, caller)
            except ProblemError as problem:
                if problem.code is not ProblemCode.STORE_UNAVAILABLE:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            # Another process may have replaced the store between the two questions.
            if version_found(found) > version:
                version = version_found(found)
                yield format_event(name_of(found), str(version), view(found))


def name_of(found: Found) -> str:
    """The name of the event that tells this state."""
    if isinstance(found, RecentTask):
        return TaskStatus.QUEUED.value
    return PROGRESS if found.step is not None else found.status.value


def format_event(name: str, event_id: str, view: BaseModel) -> bytes:
    """The event on the wire."""
    # In ASCII: some clients take U+2028 and others for ends of lines, where the format has only CR and LF.
    return format_sse_event(event=name, id=event_id, data_str=view.model_dump_json(ensure_ascii=True))
