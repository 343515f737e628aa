"""The events of all tasks of a tenant: some of the tasks, then each that changes.

The id of an event is the place of its change in the order of the tenant's changes, which every process reads. A task
is read with the state that it has then: a client that reads slowly, or was away, gets later states, a task once.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from fluxpool_gateway.http.problem import invalid_header
from fluxpool_gateway.live.event_response import Events
from fluxpool_gateway.live.task_events import SNAPSHOT, format_event, name_of
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.task_list import ChangePlace, ListFilter, TaskPage
from fluxpool_gateway.store.task_state import TaskState
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
) -> Events:
    """At most `limit` tasks, then changes for ever; or what came after the place that the client knows.

    An event is of a task whose new state passes the filter.
    """
    place = known
    while True:
        try:
            if place is None:
                page, place = await store.snapshot(wanted, limit=limit)
                yield format_event(SNAPSHOT, str(place), page_view(page))
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
                yield format_event(name_of(task), str(changed_at), view(task))
        if changes.has_more:
            place = changes.tasks[-1][0]
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            place = changes.newest
            await waits.later_than(wanted.tenant, place.number)
