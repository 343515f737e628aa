"""The events of all tasks of a tenant: some of the tasks, then each that changes.

The id of an event is the place of its change in the order of the tenant's changes, which every process reads. A task
is read with the state that it has then: a client that reads slowly, or was away, gets later states, a task once.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import Final

from fastapi.sse import format_sse_event

from fluxpool_gateway.http.problem import invalid_header
from fluxpool_gateway.live.event_response import Events
from fluxpool_gateway.live.previews import MAX_WATCHED, SeveralWatched, TaskPreviews, asks_for_previews, previews_until
from fluxpool_gateway.live.task_events import PREVIEW, SNAPSHOT, format_event, name_of
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.task_list import ChangePlace, ListFilter, ListOrder, TaskPage
from fluxpool_gateway.store.task_state import TaskState, TaskStatus
from fluxpool_gateway.tasks.view import TaskPageView, TaskView
from fluxpool_gateway.tasks.waiting import StoreWaits

_PAGE: Final = 100
_PAUSE_SECONDS: Final = 0.1
"""Between pages: a reader gets 1,000 events a second at most, which take a tenth of a process."""
_STORE_PAUSE_SECONDS: Final = 1.0


def known_place(last_event_id: str | None) -> ChangePlace | None:
    """The place that a client has; raises `ProblemError` (400)."""
    if not last_event_id:
        return None
    try:
        return ChangePlace.parse(last_event_id)
    except ValueError as error:
        raise invalid_header("Last-Event-ID", str(error)) from error


async def tenant_events(
    wanted: ListFilter,
    known: ChangePlace | None,
    *,
    limit: int,
    store: TaskStoreReader,
    waits: StoreWaits[str],
    page_view: Callable[[TaskPage], TaskPageView],
    view: Callable[[TaskState], TaskView],
    previews: TaskPreviews | None = None,
) -> Events:
    """At most `limit` tasks, then changes for ever; or what came after the place that the client knows.

    An event is of a task whose new state passes the filter. With `previews` there are those of running tasks between.
    """
    watching = nullcontext() if previews is None else previews.watch_several()
    with watching as watched:
        events = _tenant_events(
            wanted, known, limit=limit, store=store, waits=waits, page_view=page_view, view=view, watched=watched
        )
        async with aclosing(events):
            async for event in events:
                yield event


async def _tenant_events(
    wanted: ListFilter,
    known: ChangePlace | None,
    *,
    limit: int,
    store: TaskStoreReader,
    waits: StoreWaits[str],
    page_view: Callable[[TaskPage], TaskPageView],
    view: Callable[[TaskState], TaskView],
    watched: SeveralWatched | None,
) -> Events:
    place = known
    knows_running = False
    while True:
        try:
            if place is None:
                page, place = await store.snapshot(wanted, limit=limit)
                yield format_event(SNAPSHOT, str(place), page_view(page))
            if watched is not None and not knows_running:
                # Those that began before: changes tell only what comes.
                running = replace(wanted, statuses=frozenset({TaskStatus.RUNNING}))
                for task in (await store.list(running, order=ListOrder.DESC, limit=MAX_WATCHED)).tasks:
                    _watch(task, watched)
                knows_running = True
            changes = await store.changes(wanted.tenant, after=place, limit=_PAGE)
        except StoreUnavailableError:
            await asyncio.sleep(_STORE_PAUSE_SECONDS)
            continue
        if not place.is_within(changes.newest):
            # The store was built again: in that one nothing tells what the client has.
            place = None
            continue
        for changed_at, task in changes.tasks:
            if wanted.passes(task):
                _watch(task, watched)
                yield format_event(name_of(task), str(changed_at), view(task))
        if changes.has_more:
            place = changes.tasks[-1][0]
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            place = changes.newest
            changed = asyncio.ensure_future(waits.later_than(wanted.tenant, place.number))
            async with aclosing(previews_until(changed, None if watched is None else watched.watch)) as shown:
                async for preview in shown:
                    yield format_sse_event(event=PREVIEW, data_str=preview.model_dump_json())
            changed.result()


def _watch(task: TaskState, watched: SeveralWatched | None) -> None:
    """Watch a task from its start to its end, if it asks for previews."""
    if watched is None:
        return
    if task.status is TaskStatus.RUNNING and asks_for_previews(task):
        watched.add(task.key)
    elif task.status is not TaskStatus.RUNNING:
        watched.discard(task.key)
