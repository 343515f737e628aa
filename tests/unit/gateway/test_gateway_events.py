"""The events of a task over real sockets and a real task store."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_gateway.live.routes import accepts_events
from fluxpool_gateway.store.task_state import ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from kit.gateways.keyed_gateway import key_id, succeeded
from kit.http.event_streams import EventReader, Listening, listening_gateway, reading
from kit.waiting import wait_until

STATE = "/v1/generations/r-1"
EVENTS = f"{STATE}/events"
QUEUED = TaskSeen(request_id="r-1", body="{}", priority="standard", tenant="default", created_at_ms=1)
DONE = succeeded("r-1", "default")


def step(number: int | None, *, attempt: int = 1) -> ProgressSeen:
    return ProgressSeen(
        request_id="r-1", status=TaskStatus.RUNNING, at_ms=2, started=number is None, attempt=attempt,
        step=number, total_steps=None if number is None else 9, tenant="default",
    )  # fmt: skip


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with listening_gateway(tmp_path) as running:
        running.gateway.project(QUEUED)
        yield running


def shown(reader: EventReader) -> list[tuple[str, str, int | None]]:
    """Name, status and step of all events so far."""
    return [
        (event.name, event.data["status"], event.data["progress"] and event.data["progress"]["step"])
        for event in reader.events
    ]


async def test_the_state_comes_first_then_each_change_and_the_response_ends_with_the_task(
    listening: Listening,
) -> None:
    async with reading(listening.one, EVENTS) as reader:
        first = await reader.next()
        assert first is not None
        assert first.data == (await listening.one.get(STATE)).json()
        for change in (step(None), step(1), step(2), DONE):
            listening.gateway.project(change)
            assert await reader.next() is not None
        assert await reader.next() is None
    assert shown(reader) == [
        ("snapshot", "queued", None),
        ("running", "running", None),
        ("progress", "running", 1),
        ("progress", "running", 2),
        ("succeeded", "succeeded", None),
    ]
    assert reader.events[-1].data == (await listening.one.get(STATE)).json()
    assert reader.retry == 2000
    assert len({event.id for event in reader.events}) == 5


async def test_of_an_ended_task_there_is_the_state_alone(listening: Listening) -> None:
    listening.gateway.project(DONE)
    async with reading(listening.one, EVENTS) as reader:
        assert await reader.rest()
    assert shown(reader) == [("snapshot", "succeeded", None)]


async def test_a_client_continues_on_another_process_without_a_gap_or_a_double(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader:
        listening.gateway.project(step(1))
        while (last := await reader.next()) is not None and last.name != "progress":
            pass
    assert last is not None
    assert last.id is not None
    async with reading(listening.two, EVENTS, last_event_id=last.id) as reader:
        # An event that the client has would come before this one.
        await asyncio.wait({following := asyncio.ensure_future(reader.next())}, timeout=0.3)
        assert not following.done()
        listening.gateway.project(step(2))
        await following
    # What came without a listener is the next event, once.
    listening.gateway.project(step(3))
    listening.gateway.project(step(4))
    async with reading(listening.one, EVENTS, last_event_id=reader.events[-1].id or "") as again:
        await again.next()
        listening.gateway.project(DONE)
        await again.rest()
    assert shown(reader) == [("progress", "running", 2)]
    assert shown(again) == [("progress", "running", 4), ("succeeded", "succeeded", None)]


async def test_a_client_that_was_away_gets_the_end_and_then_no_more(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader:
        first = await reader.next()
    listening.gateway.project(step(1), DONE)
    assert first is not None
    async with reading(listening.one, EVENTS, last_event_id=first.id or "") as reader:
        assert [event.name for event in await reader.rest()] == ["succeeded"]
    answer = await listening.one.get(EVENTS, headers={"last-event-id": reader.events[-1].id or ""})
    # `EventSource` connects again after any other response (HTML standard, section 9.2.2).
    assert (answer.status_code, answer.content) == (204, b"")


async def test_a_retry_of_a_worker_is_an_event(listening: Listening) -> None:
    queued_again = ProgressSeen(
        request_id="r-1", status=TaskStatus.QUEUED, at_ms=3, started=False, attempt=2, tenant="default"
    )
    async with reading(listening.one, EVENTS) as reader:
        await reader.next()
        for change in (step(7), queued_again, step(None, attempt=2)):
            listening.gateway.project(change)
            await reader.next()
    assert [name for name, *_ in shown(reader)] == ["snapshot", "progress", "queued", "running"]


async def test_a_version_that_the_store_does_not_have_yet_is_answered_with_the_state(listening: Listening) -> None:
    # As after a rebuild from what Kafka still has.
    async with reading(listening.one, EVENTS, last_event_id=str(10**15)) as reader:
        await reader.next()
    assert shown(reader) == [("snapshot", "queued", None)]


async def test_a_task_that_was_just_accepted_has_the_id_that_it_will_have_in_the_store(listening: Listening) -> None:
    accepted = (await listening.one.post("/v1/generations", json={"prompt": "a"})).json()
    name = accepted["request_id"]
    async with reading(listening.one, f"/v1/generations/{name}/events") as reader:
        first = await reader.next()
        assert first is not None
        listening.gateway.project(
            TaskSeen(request_id=name, body="{}", priority="standard", tenant="default", created_at_ms=1)
        )
        async with reading(listening.two, f"/v1/generations/{name}/events") as other:
            stored = await other.next()
        listening.gateway.project(succeeded(name, "default"))
        await reader.rest()
    assert stored is not None
    assert stored.id == first.id
    assert shown(reader) == [("snapshot", "queued", None), ("succeeded", "succeeded", None)]


async def test_text_of_any_kind_is_one_line(listening: Listening) -> None:
    # Taken for ends of lines by clients that split as Python does (florimondmanca/httpx-sse#34).
    message = "a\u2028b\u0085c\x0bd\x1ce\r\nf\rg\nid: 7\n\ndata: {}"
    error = {"code": "generation-failed", "error_class": "transient", "message": message}
    body = json.dumps({"request_id": "r-1", "image_url": None, "status": "failed", "error": error}, ensure_ascii=False)
    listening.gateway.project(
        ResultSeen(
            request_id="r-1", status=TaskStatus.FAILED, body=body, completed_at_ms=3, tenant="default"
        )
    )  # fmt: skip
    async with listening.one.stream("GET", EVENTS) as response:
        lines = [line async for line in response.aiter_lines()]
    (data,) = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    assert json.loads(data)["error"]["message"] == message
    assert [line.partition(":")[0] for line in lines if line] == ["retry", "event", "data", "id"]


async def test_a_server_that_stops_says_so_and_closes(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as reader:
        await reader.next()
        listening.server.shut_down()
        (closed,) = await reader.rest()
    assert (closed.name, closed.data["reason"], closed.id) == ("closed", "server_stopping", None)
    await wait_until(lambda: not listening.server.state.connections, deadline_seconds=10, what="a closed connection")


async def test_a_place_is_free_again_when_its_client_has_gone(listening: Listening) -> None:
    async with reading(listening.one, EVENTS) as one, reading(listening.one, EVENTS) as two:
        assert await one.next() is not None
        assert await two.next() is not None
        assert await listening.readers() == 2

    async def nobody_reads() -> bool:
        return await listening.readers() == 0

    await wait_until(nobody_reads, deadline_seconds=10, what="free places")


async def test_the_limits_of_a_tenant_and_of_the_process_are_named(listening: Listening) -> None:
    others = await listening.gateway.create("read", tenant="other")
    theirs = TaskSeen(request_id="o-1", body="{}", priority="standard", tenant="other", created_at_ms=1)
    listening.gateway.project(theirs)
    as_other = {"authorization": f"Bearer {others}"}
    async with reading(listening.one, EVENTS) as one, reading(listening.one, EVENTS) as two:
        assert await one.next() is not None
        assert await two.next() is not None
        of_tenant = await listening.one.get(EVENTS)
        async with reading(listening.one, "/v1/generations/o-1/events", **as_other) as three:
            assert await three.next() is not None
            of_process = await listening.one.get("/v1/generations/o-1/events", headers=as_other)
    for answer, setting in ((of_tenant, "EVENT_STREAMS_OF_TENANT"), (of_process, "EVENT_STREAMS)")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_event_streams")
        assert setting in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"


async def test_a_client_that_sends_no_more_reads_on_until_its_key_is_revoked(listening: Listening) -> None:
    key = await listening.gateway.create("read")
    connection, writer = await asyncio.open_connection("127.0.0.1", listening.server.port)
    writer.write(f"GET {EVENTS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    writer.write_eof()
    async with asyncio.timeout(60):
        await connection.readuntil(b"event: snapshot")
        # Such a client is pinged each second, and its key is looked at then.
        await connection.readuntil(b": ping")
        assert (await listening.one.delete(f"/v1/keys/{key_id(key)}")).is_success
        rest = await connection.read()
    writer.close()
    assert b"event: closed" in rest
    assert b'"reason": "unauthorized"' in rest


async def test_a_request_that_no_endless_response_can_answer_is_refused(listening: Listening) -> None:
    head = await listening.one.head(EVENTS)
    assert (head.status_code, head.headers["allow"]) == (405, "GET")
    refused = await listening.one.get(EVENTS, headers={"accept": "application/json"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (406, "not_acceptable")
    unknown = await listening.one.get(EVENTS, headers={"last-event-id": "12-3"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert (await listening.one.get("/v1/generations/r-9/events")).status_code == 404
    cannot_read = await listening.gateway.create("submit")
    forbidden = await listening.one.get(EVENTS, headers={"authorization": f"Bearer {cannot_read}"})
    assert forbidden.status_code == 403


@pytest.mark.parametrize(
    ("accept", "allowed"),
    [
        ([], True),
        (["*/*"], True),
        (["text/event-stream"], True),
        (["Text/Event-Stream; charset=utf-8"], True),
        (["application/json, text/*;q=0.1"], True),
        (["application/json", "text/event-stream"], True),
        (["application/json"], False),
        (["text/event-stream;q=0"], False),
        (["text/event-stream; q=0.000"], False),
        (["text/html"], False),
    ],
)
def test_what_a_client_accepts(accept: list[str], allowed: bool) -> None:
    assert accepts_events(accept) is allowed
