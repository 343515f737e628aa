"""The live events of a task, by both clients: over sockets, through a link that is cut, and scripted."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_client import (
    AsyncClient,
    Client,
    FluxpoolError,
    NotFoundError,
    PreviewedTask,
    Task,
    UnexpectedResponseError,
    UnreachableError,
)
from fluxpool_client.event_stream import EventDecoder, ServerEvent
from fluxpool_gateway.store.task_state import ProgressSeen, TaskSeen, TaskStatus
from kit.faults.tcp_proxy import TcpProxy
from kit.gateways.client_world import CLIENTS
from kit.gateways.keyed_gateway import succeeded
from kit.http.event_streams import Listening, listening_gateway
from kit.waiting import PATIENCE, wait_until

ID = "r-1"
QUEUED = TaskSeen(request_id=ID, body="{}", priority="standard", tenant="default", created_at_ms=1)
DONE = succeeded(ID, "default")
STREAM = {"content-type": "text/event-stream; charset=utf-8"}

Next = Callable[[], Awaitable[Task | None]]


def step(number: int) -> ProgressSeen:
    return ProgressSeen(
        request_id=ID, status=TaskStatus.RUNNING, at_ms=2, started=False, attempt=1, step=number, total_steps=9,
        tenant="default",
    )  # fmt: skip


@asynccontextmanager
async def watching(kind: str, url: str, key: str, *, all_tasks: bool = False) -> AsyncIterator[Next]:
    """What returns the next state of the task, or of any; None after the last."""
    if kind == "asyncio":
        async with AsyncClient(url, api_key=key) as client:
            states = cast("AsyncGenerator[Task]", client.changes() if all_tasks else client.events(ID))

            async def following() -> Task | None:
                return await anext(states, None)

            yield following
            await states.aclose()
    else:
        with Client(url, api_key=key) as blocking:
            found = cast("Generator[Task]", blocking.changes() if all_tasks else blocking.events(ID))
            yield lambda: asyncio.to_thread(next, found, None)
            found.close()


def steps_of(task: Task | None) -> int | None:
    assert task is not None
    return None if task.progress is None else task.progress.step


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with listening_gateway(tmp_path) as running:
        running.gateway.project(QUEUED)
        yield running


@pytest.mark.parametrize("kind", CLIENTS)
async def test_each_state_comes_as_it_is_reached_until_the_end(listening: Listening, kind: str) -> None:
    async def no_reader() -> bool:
        return await listening.readers() == 0

    async with asyncio.timeout(30 * PATIENCE):
        async with watching(kind, listening.server.url, listening.gateway.admin) as following:
            first = await following()
            assert first is not None
            assert first.status == "queued"
            for number in (1, 2):
                listening.gateway.project(step(number))
                assert steps_of(await following()) == number
            listening.gateway.project(DONE)
            last = await following()
            assert last is not None
            assert (last.succeeded, len(last.images)) == (True, 1)
            assert await following() is None
        await wait_until(no_reader, deadline_seconds=30, what="the gateway to have no reader")


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_cut_connection_continues_after_the_last_state(listening: Listening, kind: str) -> None:
    async with (
        asyncio.timeout(60 * PATIENCE),
        TcpProxy(listening.server.port) as link,
        watching(kind, f"http://{link.address}", listening.gateway.admin) as following,
    ):
        assert await following() is not None
        listening.gateway.project(step(1))
        assert steps_of(await following()) == 1
        link.reset_connections()
        coming = asyncio.ensure_future(following())
        # The state that the client has would come as soon as it is connected again.
        await wait_until(lambda: link.accepted > 1 or coming.done(), deadline_seconds=30, what="a second connection")
        listening.gateway.project(step(2))
        assert steps_of(await coming) == 2
        link.reset_connections()
        listening.gateway.project(step(3))
        listening.gateway.project(DONE)
        last = await following()
        assert last is not None
        assert last.succeeded
        assert await following() is None


@pytest.mark.parametrize("kind", CLIENTS)
async def test_changes_of_all_tasks_follow_the_list_and_outlast_a_cut_connection(
    listening: Listening, kind: str
) -> None:
    other = replace(QUEUED, request_id="r-2", created_at_ms=2)
    listening.gateway.project(other)
    async with (
        asyncio.timeout(60 * PATIENCE),
        TcpProxy(listening.server.port) as link,
        watching(kind, f"http://{link.address}", listening.gateway.admin, all_tasks=True) as following,
    ):
        listed = [await following(), await following()]
        assert [task and task.request_id for task in listed] == [ID, "r-2"]
        listening.gateway.project(step(1))
        assert steps_of(await following()) == 1
        link.reset_connections()
        listening.gateway.project(DONE)
        last = await following()
        assert last is not None
        assert (last.request_id, last.succeeded) == (ID, True)


# Scripted responses


def event(name: str, status: str, event_id: int, **fields: Any) -> bytes:
    state = {"request_id": ID, "status": status, "status_url": "/", **fields}
    return f"event: {name}\ndata: {json.dumps(state)}\nid: {event_id}\n\n".encode()


QUEUED_EVENT = event("snapshot", "queued", 1)
DONE_EVENT = event("succeeded", "succeeded", 9)
CLOSED = b'event: closed\ndata: {"reason": "server_stopping", "detail": "the server is stopping"}\n\n'


async def read(kind: str, *responses: httpx.Response | Exception, attempts: int = 3) -> tuple[list[str], list[str]]:
    """The statuses that a client shows of these responses, and the `Last-Event-ID` of each of its requests."""
    tasks, known = await read_tasks(kind, *responses, attempts=attempts)
    return [task.status for task in tasks], known


async def read_tasks(
    kind: str, *responses: httpx.Response | Exception, attempts: int = 3
) -> tuple[list[Task], list[str]]:
    """As `read`, with the whole states."""
    left, known = list(responses), list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        known.append(request.headers.get("last-event-id", ""))
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    if kind == "asyncio":
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as connections:
            client = AsyncClient("http://gateway", max_attempts=attempts, http=connections)
            return [task async for task in client.events(ID)], known
    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        blocking = Client("http://gateway", max_attempts=attempts, http=http)
        return await asyncio.to_thread(list, blocking.events(ID)), known


def stream(*parts: bytes) -> httpx.Response:
    return httpx.Response(200, headers=STREAM, content=b"".join((b"retry: 2000\n\n", *parts)))


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_stream_that_the_server_closes_or_cuts_is_continued(kind: str) -> None:
    responses: list[httpx.Response | Exception] = [
        stream(QUEUED_EVENT, CLOSED),
        httpx.ConnectError("refused"),
        stream(event("running", "running", 2), DONE_EVENT[:-1]),
        httpx.Response(503, headers={"retry-after": "1"}),
        stream(DONE_EVENT, QUEUED_EVENT),
    ]
    assert await read(kind, *responses) == (["queued", "running", "succeeded"], ["", "1", "1", "2", "2"])


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_silent_stream_is_opened_again_and_one_without_a_sign_of_life_is_an_error(kind: str) -> None:
    alive = [stream(b": ping\n\n") for _ in range(3)]
    assert await read(kind, *alive, stream(DONE_EVENT), attempts=2) == (["succeeded"], [""] * 4)
    with pytest.raises(UnreachableError, match="no event of r-1: its response ended"):
        await read(kind, stream(), stream(), attempts=2)


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_task_whose_end_is_known_has_no_events(kind: str) -> None:
    assert await read(kind, httpx.Response(204)) == ([], [""])


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("response", "error", "match"),
    [
        (httpx.Response(404, content=b"{}"), NotFoundError, "404"),
        (httpx.Response(200, content=b"<html>"), UnexpectedResponseError, "no event stream"),
        (httpx.Response(302, headers={"location": "/login"}), UnexpectedResponseError, "HTTP 302"),
        (stream(event("running", "running", 1, request_id="r-2")), UnexpectedResponseError, "an event is about r-2"),
        (stream(b"event: running\ndata: {}\n\n"), UnexpectedResponseError, "no state of a task"),
        (stream(b"data: " + b"x" * 1_100_000), UnexpectedResponseError, "more than 1048576 bytes"),
        (stream(b"data: x\n" * 200_000), UnexpectedResponseError, "more than 1048576 bytes"),
    ],
    ids=["not-found", "html", "redirect", "another", "no-state", "long-line", "many-lines"],
)
async def test_what_is_no_stream_of_the_task_is_one_error_at_once(
    kind: str, response: httpx.Response, error: type[FluxpoolError], match: str
) -> None:
    with pytest.raises(error, match=match):
        await read(kind, httpx.Response(response.status_code, headers=response.headers, content=response.content))


@pytest.mark.parametrize("kind", CLIENTS)
async def test_an_event_of_a_later_release_is_left_out(kind: str) -> None:
    later = (
        b'event: preview\ndata: {"image": "UklGRg=="}\nid: 5\n\ndata: 7\n\n'
        b'event: moved\ndata: {"request_id": "r-1"}\n\n'
    )
    assert await read(kind, stream(later, DONE_EVENT)) == (["succeeded"], [""])


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_preview_is_the_last_state_with_the_preview(kind: str) -> None:
    running = json.dumps({"request_id": ID, "status": "running", "status_url": "http://gateway/r-1"}).encode()
    picture = json.dumps({"index": 1, "step": 4, "content_type": "image/webp", "data": "UklGRg=="}).encode()
    found = b"event: snapshot\nid: 1\ndata: %b\n\nevent: preview\ndata: %b\n\n" % (running, picture)
    shown, known = await read_tasks(kind, stream(found), stream(DONE_EVENT))
    assert known == ["", "1"]
    assert [(task.status, isinstance(task, PreviewedTask)) for task in shown] == [
        ("running", False),
        ("running", True),
        ("succeeded", False),
    ]
    assert isinstance(shown[1], PreviewedTask)
    preview = shown[1].preview
    assert (preview.index, preview.step, preview.content_type, preview.data) == (1, 4, "image/webp", b"RIFF")


PARTS = st.sampled_from(["event", "id", "data", ":", ": ", "x", "\u2028", "\x85", "\n", "\r", "\r\n", "\n\n", "{}"])


@given(texts=st.lists(PARTS, max_size=40), cuts=st.lists(st.integers(0, 120), max_size=6))
def test_events_do_not_depend_on_how_the_bytes_arrive(texts: list[str], cuts: list[int]) -> None:
    stream = "".join(texts).encode()
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    whole, parts = EventDecoder(), EventDecoder()
    # A CR at the end waits for an LF.
    expected = [*whole.feed(stream), *whole.feed(b"x")]
    found = [one for begin, end in pairwise(places) for one in parts.feed(stream[begin:end])] + list(parts.feed(b"x"))
    assert found == expected


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_an_event_has_the_lines_of_its_data_and_keeps_the_separators_of_unicode(line_end: str) -> None:
    lines = ["event: a", "data: one\u2028\x85", "data:two", "id: 7", "", ": ping", "data", "", "id: 8", "", "data: x"]
    found = list(EventDecoder().feed(line_end.join([*lines, ""]).encode()))
    assert found == [
        ServerEvent("a", "one\u2028\x85\ntwo", "7"),
        ServerEvent("", "", None),
        ServerEvent("", "", "7"),
    ]
