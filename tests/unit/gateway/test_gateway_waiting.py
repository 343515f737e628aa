"""`Prefer: wait` and `ETag` of a task's state, over a real task store."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_gateway.http.request_context import preferred_wait_seconds
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.task_state import ProgressSeen, ResultSeen, TaskKey, TaskSeen, TaskStatus
from fluxpool_gateway.tasks.waiting import TaskWaits
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.http.event_streams import serving
from kit.waiting import PATIENCE, wait_until

STATE = "/v1/generations/r-1"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        running.project(TaskSeen(request_id="r-1", body="{}", priority="standard", tenant="default", created_at_ms=1))
        yield running


def step(number: int) -> ProgressSeen:
    return ProgressSeen(
        tenant="default",
        request_id="r-1",
        status=TaskStatus.RUNNING,
        at_ms=2,
        started=False,
        step=number,
        total_steps=9,
    )


def succeeded(request_id: str = "r-1") -> ResultSeen:
    body = f'{{"request_id": "{request_id}", "image_url": null, "status": "success"}}'
    return ResultSeen(
        request_id=request_id, status=TaskStatus.SUCCEEDED, body=body, completed_at_ms=3, tenant="default"
    )


async def state_of(gateway: Gateway, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.one.ask("GET", STATE, gateway.admin, headers=named)


def waiting_for(gateway: Gateway, **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.ensure_future(state_of(gateway, **headers))


async def test_a_wait_ends_with_the_task(gateway: Gateway) -> None:
    answer = waiting_for(gateway, prefer="wait=60")
    gateway.project(step(1))
    await asyncio.wait({answer}, timeout=0.2)
    assert not answer.done()
    gateway.project(succeeded())
    ended = await asyncio.wait_for(answer, 30)
    assert (ended.status_code, ended.json()["status"]) == (200, "succeeded")
    assert ended.headers["preference-applied"] == "wait=60"
    assert "retry-after" not in ended.headers


async def test_a_wait_that_takes_too_long_ends_with_the_state_as_it_is(gateway: Gateway) -> None:
    answer = await state_of(gateway, prefer="wait=1")
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert (answer.headers["preference-applied"], answer.headers["retry-after"]) == ("wait=1", "1")


async def test_an_ended_task_is_not_waited_for(gateway: Gateway) -> None:
    gateway.project(succeeded())
    async with asyncio.timeout(30):
        assert (await state_of(gateway, prefer="wait=60")).json()["status"] == "succeeded"


async def test_a_wait_for_a_task_that_was_just_accepted_ends_with_it(gateway: Gateway) -> None:
    accepted = (await gateway.one.submit(gateway.admin)).json()
    asking = gateway.one.ask("GET", accepted["status_url"], gateway.admin, headers={"prefer": "wait=60"})
    answer = asyncio.ensure_future(asking)
    await asyncio.wait({answer}, timeout=0.1)
    gateway.project(succeeded(accepted["request_id"]))
    assert (await asyncio.wait_for(answer, 30)).json()["status"] == "succeeded"


async def test_an_unknown_task_is_not_waited_for(gateway: Gateway) -> None:
    async with asyncio.timeout(30):
        answer = await gateway.one.ask("GET", STATE + "9", gateway.admin, headers={"prefer": "wait=60"})
    assert answer.status_code == 404


async def test_a_state_that_the_client_has_is_not_sent_again(gateway: Gateway) -> None:
    first = await state_of(gateway)
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await state_of(gateway, if_none_match=known)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    gateway.project(step(1))
    changed = await state_of(gateway, if_none_match=etag)
    assert (changed.status_code, changed.json()["progress"]["step"]) == (200, 1)
    assert changed.headers["etag"] != etag


async def test_several_headers_with_tags_are_one_list(gateway: Gateway) -> None:
    etag = (await state_of(gateway)).headers["etag"]
    headers = [("if-none-match", '"other"'), ("if-none-match", etag), ("authorization", f"Bearer {gateway.admin}")]
    assert (await gateway.one.http.get(STATE, headers=headers)).status_code == 304


async def test_with_a_tag_a_wait_ends_with_the_next_change(gateway: Gateway) -> None:
    etag = (await state_of(gateway)).headers["etag"]
    answer = waiting_for(gateway, prefer="wait=60", if_none_match=etag)
    await asyncio.wait({answer}, timeout=0.2)
    assert not answer.done()
    gateway.project(step(1))
    assert (await asyncio.wait_for(answer, 30)).json()["progress"]["step"] == 1
    unchanged = await state_of(gateway, prefer="wait=1", if_none_match=(await state_of(gateway)).headers["etag"])
    assert unchanged.status_code == 304


async def test_a_server_that_is_about_to_stop_answers_those_who_wait(gateway: Gateway) -> None:
    answer = waiting_for(gateway, prefer="wait=60")
    await asyncio.wait({answer}, timeout=0.1)
    gateway.one.app.state.services.stopping.set()
    assert (await asyncio.wait_for(answer, 30)).json()["status"] == "queued"


async def test_a_client_that_closes_its_sending_side_is_answered_at_once(gateway: Gateway) -> None:
    async with serving(gateway.one.app) as server, asyncio.timeout(30 * PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"GET {STATE} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {gateway.admin}\r\nprefer: wait=60\r\n\r\n"
        writer.write(head.encode())
        writer.write_eof()
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"status":"queued"' in answer


async def test_a_client_that_goes_away_is_not_waited_for(gateway: Gateway) -> None:
    headers = [(b"authorization", f"Bearer {gateway.admin}".encode()), (b"prefer", b"wait=60"), (b"host", b"gateway")]
    scope = {
        "type": "http", "method": "GET", "path": STATE, "raw_path": STATE.encode(), "query_string": b"",
        "scheme": "http", "headers": headers, "http_version": "1.1", "root_path": "",
        "server": ("gateway", 80), "client": None,
    }  # fmt: skip
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return next(received, {"type": "http.disconnect"})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])

    async with asyncio.timeout(30):
        await gateway.one.app(scope, receive, send)
    assert sent


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", None),
        ("wait=5", 5),
        ("Wait = 5", 5),
        ('wait="5"', 5),
        ("wait", 60),
        ("wait=0", 0),
        ("wait=3600", 60),
        ("wait=999999999", 60),
        ("respond-async, wait=5", 5),
        ("wait=5; x=1, wait=7", 5),
        ('note="a, wait=9", wait=5', 5),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait=1.5", None),
        ("waiting=5", None),
        ("respond-async", None),
        ('"', None),
    ],
)
def test_the_wait_of_a_prefer_header(header: str, seconds: int | None) -> None:
    assert preferred_wait_seconds(header, maximum=60) == seconds


async def test_all_who_wait_share_the_questions_to_the_store() -> None:
    asked: list[int] = []
    versions: dict[TaskKey, int] = {TaskKey(f"r-{number}", "other"): 9 for number in range(100)}

    async def read(request_ids: Sequence[str]) -> dict[TaskKey, int]:
        asked.append(len(request_ids))
        return {key: version for key, version in versions.items() if key.request_id in request_ids}

    async with asyncio.TaskGroup() as group:
        waits = TaskWaits(group, versions=read)
        waiting = [
            group.create_task(waits.later_than(TaskKey(f"r-{number % 100}", "acme"), 7)) for number in range(1000)
        ]
        await wait_until(lambda: len(asked) >= 2, deadline_seconds=10, what="two questions")
        versions |= {TaskKey(f"r-{number}", "acme"): 7 for number in range(100)}
        seen = len(asked)
        await wait_until(lambda: len(asked) >= seen + 2, deadline_seconds=10, what="two more questions")
        assert not any(task.done() for task in waiting)
        versions |= {TaskKey(f"r-{number}", "acme"): 8 for number in range(100)}
    assert set(asked) == {100}


async def test_a_wait_survives_a_store_that_cannot_be_read_for_a_while() -> None:
    asked: list[Sequence[str]] = []

    async def read(request_ids: Sequence[str]) -> dict[TaskKey, int]:
        asked.append(request_ids)
        if len(asked) < 3:
            raise StoreUnavailableError("the store is being rebuilt")
        return {TaskKey("r-1", "acme"): 1}

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        await TaskWaits(group, versions=read).later_than(TaskKey("r-1", "acme"), -1)


def _longer_than(asked: Sequence[Sequence[str]], count: int) -> bool:
    return len(asked) > count


async def test_nobody_is_asked_once_all_waits_are_over() -> None:
    asked: list[Sequence[str]] = []

    async def read(request_ids: Sequence[str]) -> dict[TaskKey, int]:
        asked.append(request_ids)
        return {}

    # The group ends only with the task that asks.
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waits = TaskWaits(group, versions=read)
        for _ in range(2):
            waiting = asyncio.ensure_future(waits.later_than(TaskKey("r-1", "acme"), -1))
            seen = len(asked)
            await wait_until(partial(_longer_than, asked, seen), deadline_seconds=10, what="a question")
            waiting.cancel()
            await asyncio.wait({waiting})
