"""The events of all tasks of a tenant over real sockets and a real task store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.task_list import ChangePlace
from fluxpool_gateway.store.task_state import DeletionSeen, ProgressSeen, TaskSeen, TaskStatus
from fluxpool_gateway.store.task_store import TaskStoreWriter
from kit.gateways.keyed_gateway import succeeded
from kit.http.event_streams import Event, EventReader, Listening, listening_gateway, reading

EVENTS = "/v1/events"


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with listening_gateway(tmp_path) as running:
        running.gateway.project(task("r-1"), task("acme-1", tenant="acme"))
        yield running


def task(name: str, *, tenant: str = "default", group_id: str | None = None) -> TaskSeen:
    return TaskSeen(
        request_id=name, body="{}", priority="standard", tenant=tenant, created_at_ms=1, group_id=group_id
    )  # fmt: skip


def step(name: str, number: int, *, tenant: str = "default") -> ProgressSeen:
    return ProgressSeen(
        request_id=name, status=TaskStatus.RUNNING, at_ms=2, started=False, step=number, total_steps=9, tenant=tenant
    )


async def after(reader: EventReader) -> Event:
    event = await reader.next()
    assert event is not None
    return event


def told(reader: EventReader) -> list[tuple[str, str]]:
    return [(event.name, event.data["request_id"]) for event in reader.events if event.name != "snapshot"]


async def test_a_page_of_the_list_comes_first_then_every_change_of_the_tenants_tasks_alone(
    listening: Listening,
) -> None:
    async with reading(listening.one, EVENTS) as reader:
        snapshot = await after(reader)
        assert snapshot.data == (await listening.one.get("/v1/generations")).json()
        project = listening.gateway.project
        for changes in (
            [step("acme-1", 1, tenant="acme"), task("r-2")],
            [step("r-1", 1)],
            [succeeded("acme-1", "acme"), succeeded("r-1", "default")],
        ):
            project(*changes)
            await after(reader)
    assert told(reader) == [("queued", "r-2"), ("progress", "r-1"), ("succeeded", "r-1")]
    assert reader.events[-1].data == (await listening.one.get("/v1/generations/r-1")).json()


async def test_a_client_continues_on_another_process_without_a_gap_or_a_double(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader:
        await after(reader)
        listening.gateway.project(step("r-1", 1), task("r-2"))
        await after(reader)
        last = await after(reader)
    # Without a listener; one of them twice.
    listening.gateway.project(step("r-1", 2))
    listening.gateway.project(task("r-3"), step("r-1", 3))
    async with reading(listening.two, EVENTS, last_event_id=last.id or "") as again:
        listening.gateway.project(succeeded("r-2", "default"))
        while not again.events or again.events[-1].data["request_id"] != "r-2":
            await after(again)
    assert told(reader) == [("progress", "r-1"), ("queued", "r-2")]
    assert sorted(told(again)[:-1]) == [("progress", "r-1"), ("queued", "r-3")]
    assert {event.data["progress"]["step"] for event in again.events if event.name == "progress"} == {3}
    assert told(again)[-1] == ("succeeded", "r-2")
    places = [ChangePlace.parse(event.id or "") for event in [*reader.events, *again.events]]
    assert [place.number for place in places] == sorted({place.number for place in places})


async def test_a_record_that_says_nothing_new_is_no_event(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader:
        await after(reader)
        listening.gateway.project(step("r-1", 4))
        await after(reader)
        # The second is behind all other records of its task, which only its row has to know.
        for nothing_new in ([task("r-1"), step("r-1", 3)], [step("r-1", 4), step("r-1", 4)]):
            listening.gateway.project(*nothing_new)
        listening.gateway.project(task("r-2"))
        await after(reader)
    assert told(reader) == [("progress", "r-1"), ("queued", "r-2")]


async def test_a_deleted_task_is_not_told_and_ends_its_own_events(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader, reading(listening.one, "/v1/generations/r-1/events") as own:
        await after(reader)
        await after(own)
        listening.gateway.project(DeletionSeen(request_id="r-1", tenant="default"))
        (closed,) = await own.rest()
        listening.gateway.project(task("r-2"))
        await after(reader)
    assert (closed.name, closed.data["reason"]) == ("closed", "gone")
    assert told(reader) == [("queued", "r-2")]


async def test_filters_are_those_of_the_list(listening: Listening) -> None:
    listening.gateway.project(task("g-1", group_id="g"), task("g-2", group_id="g"))
    query = "?group_id=g&status=succeeded&status=failed&created_before=2026-01-01T00:00:00Z&limit=1"
    async with reading(listening.one, EVENTS + query) as reader:
        assert (await after(reader)).data == {"data": [], "has_more": False, "next_cursor": None}
        listening.gateway.project(step("g-1", 1), succeeded("r-1", "default"))
        listening.gateway.project(succeeded("g-2", "default"))
        await after(reader)
    assert told(reader) == [("succeeded", "g-2")]


async def test_a_store_that_was_built_again_begins_with_a_snapshot(listening: Listening) -> None:
    file = listening.gateway.settings.task_store_file()
    async with reading(listening.one, EVENTS) as reader:
        before = await after(reader)
        for part in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
            part.unlink(missing_ok=True)
        engine = open_writer(file)
        migrate(engine, file)
        TaskStoreWriter(engine).apply([(("topic", 0, 0), task("r-9"))], {}, now_ms=1)
        again = await after(reader)
        assert (again.name, [shown["request_id"] for shown in again.data["data"]]) == ("snapshot", ["r-9"])
    async with reading(listening.two, EVENTS, last_event_id=before.id or "") as reader:
        assert (await after(reader)).name == "snapshot"
    engine.dispose()


async def test_many_changes_come_page_by_page_each_task_once(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader:
        await after(reader)
        names = [f"m-{number}" for number in range(450)]
        listening.gateway.project(*(task(name) for name in names))
        while len(told(reader)) < len(names):
            await after(reader)
    assert [name for _, name in told(reader)] == names


async def test_a_request_that_cannot_be_answered_is_refused(listening: Listening) -> None:
    wrong = await listening.one.get(EVENTS, headers={"last-event-id": "100001900000"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "Last-Event-ID")
    unknown = await listening.one.get(EVENTS, params={"cursor": "x"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (422, "cursor")
    assert (await listening.one.head(EVENTS)).status_code == 405
    assert (await listening.one.get(EVENTS, headers={"accept": "text/html"})).status_code == 406
    async with reading(listening.one, EVENTS) as one, reading(listening.one, EVENTS) as two:
        assert await one.next() is not None
        assert await two.next() is not None
        assert (await listening.one.get(EVENTS)).status_code == 429
    listening.gateway.settings.task_store_file().unlink()
    assert (await listening.two.get(EVENTS)).status_code == 503
