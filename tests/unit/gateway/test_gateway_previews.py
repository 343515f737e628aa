"""Previews: from records of the progress topic to those who watch the task, and as events of its stream."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.header_names import TENANT, TENANT_PROOF
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages import Preview
from fluxpool_contract.tenants import TenantTrust, prove_tenant
from fluxpool_gateway.live.preview_reader import PreviewReader
from fluxpool_gateway.live.previews import KEPT_SECONDS, MAX_KEPT, TaskPreviews, asks_for_previews
from fluxpool_gateway.projection.projected_records import read_change
from fluxpool_gateway.store.task_state import ProgressSeen, TaskKey, TaskSeen, TaskState, TaskStatus
from kit.gateways.keyed_gateway import succeeded
from kit.http.event_streams import Event, EventReader, Listening, listening_gateway, reading

TOPICS = TopicNames()
SECRET = b"s" * 32
KEY = TaskKey("r-1", "default")
FILE = base64.b64encode(b"RIFF").decode()


def event(step: int = 4, **changes: Any) -> bytes:
    body = {
        "request_id": "r-1",
        "type": "preview",
        "attempt": 1,
        "step": step,
        "total_steps": 9,
        "preview": {"content_type": "image/webp", "data": FILE, "index": 0},
        "at": "2026-04-05T10:00:00Z",
    }
    return json.dumps(body | changes).encode()


def record(value: bytes | None, *headers: tuple[str, bytes]) -> ConsumerRecord:
    return ConsumerRecord(
        topic=TOPICS.progress,
        partition=0,
        offset=1,
        timestamp=0,
        timestamp_type=0,
        key=b"r-1",
        value=value,
        checksum=None,
        serialized_key_size=3,
        serialized_value_size=len(value or b""),
        headers=headers,
    )


def reader_of(previews: TaskPreviews, *, secret: bytes | None = SECRET) -> PreviewReader:
    def build_consumer() -> Any:
        raise AssertionError("records are given one by one")

    return PreviewReader(previews, topics=TOPICS, trust=TenantTrust(secret=secret), build_consumer=build_consumer)


async def test_each_watcher_takes_the_latest_that_it_has_not_seen() -> None:
    previews = TaskPreviews()
    reader = reader_of(previews)
    with previews.watch(KEY) as first:
        reader.take(record(event(1)))
        reader.take(record(event(2)))
        assert (await first.next()).step == 2
        with previews.watch(KEY) as second:
            assert (await second.next()).step == 2
            reader.take(record(event(3)))
            assert [(await watch.next()).step for watch in (first, second)] == [3, 3]
        waiting = asyncio.ensure_future(first.next())
        await asyncio.sleep(0)
        waiting.cancel()
        reader.take(record(event(4)))
        assert (await first.next()).step == 4
    assert not previews.is_watched


async def kept(previews: TaskPreviews, key: TaskKey = KEY) -> int | None:
    """The step of the preview that a watcher has at once; None without one."""
    with previews.watch(key) as watch:
        seen = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        step = seen.result().step if seen.done() else None
        seen.cancel()
        return step


async def test_the_latest_preview_is_kept_for_a_while_for_the_tenant_whose_task_it_is() -> None:
    now = 0.0
    previews = TaskPreviews(clock=lambda: now)
    reader = reader_of(previews)
    # Without a watcher: the next one has it at once, and the one after that.
    reader.take(record(event(4)))
    assert (await kept(previews), await kept(previews)) == (4, 4)
    assert await kept(previews, TaskKey(KEY.request_id, "other")) is None
    now = KEPT_SECONDS
    assert await kept(previews) == 4
    now += 1
    assert await kept(previews) is None
    reader.take(record(event(8)))
    with previews.watch_several() as several:
        # Its task has ended, or waits for another attempt.
        several.discard(KEY)
    assert await kept(previews) is None


async def test_as_many_previews_are_kept_as_fit_the_latest_of_them() -> None:
    previews = TaskPreviews()
    preview = Preview(content_type="image/webp", data="UklGRg==", index=0)
    keys = [TaskKey(f"r-{number}", "default") for number in range(MAX_KEPT + 1)]
    for key in (*keys[:-1], keys[0], keys[-1]):
        previews.show(key, preview, attempt=1, step=1, total_steps=2)
    assert [await kept(previews, key) for key in (keys[0], keys[1], keys[2], keys[-1])] == [1, None, 1, 1]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b'"preview"',
        event(type="step"),
        event(preview=None),
        event(preview={"content_type": "text/html", "data": FILE}),
        event(preview={"content_type": "image/webp", "data": "<script>"}),
        event(preview={"content_type": "image/webp", "data": "A" * 32_772}),
        event(worker="x" * 70_000),
    ],
)
async def test_what_is_no_preview_is_passed_over(value: bytes | None) -> None:
    previews = TaskPreviews()
    with previews.watch(KEY) as watch:
        reader_of(previews).take(record(value))
        reader_of(previews).take(record(event(7)))
        assert (await watch.next()).step == 7


@pytest.mark.parametrize(
    ("proof", "of_acme"),
    [(prove_tenant(SECRET, tenant="acme", request_id="r-1"), True), ("0" * 32, False), (None, False)],
)
async def test_a_preview_is_of_the_tenant_that_a_gateway_proved(proof: str | None, *, of_acme: bool) -> None:
    previews = TaskPreviews()
    headers = [(TENANT, b"acme"), *([] if proof is None else [(TENANT_PROOF, proof.encode())])]
    with previews.watch(TaskKey("r-1", "acme")) as acme, previews.watch(TaskKey("r-1", "other")) as other:
        reader_of(previews).take(record(event(), *headers))
        for watch, is_shown in ((acme, of_acme), (other, False)):
            seen = asyncio.ensure_future(watch.next())
            for _ in range(3):
                await asyncio.sleep(0)
            assert seen.done() == is_shown
            seen.cancel()


def test_the_store_takes_no_previews() -> None:
    trust = TenantTrust(secret=SECRET)
    assert read_change(TOPICS, topic=TOPICS.progress, value=event(), headers=[], timestamp_ms=1, trust=trust) is None


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        ('{"prompt":"a","preview":true}', True),
        ('{"prompt": "a", "preview": true}', True),
        ('{"prompt":"a","preview":false}', False),
        ('{"prompt":"\\"preview\\":true"}', False),
        ('{"preview"', False),
        ('["preview"]', False),
        (None, False),
    ],
)
def test_previews_are_watched_for_tasks_that_ask_for_them(body: str | None, *, asks: bool) -> None:
    task = TaskState(request_id="r-1", tenant="default", status=TaskStatus.QUEUED, version=0, body=body, attempts=1)
    assert asks_for_previews(task) == asks


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with listening_gateway(tmp_path) as running:
        yield running


async def test_previews_are_events_between_the_states_and_the_last_state_is_the_end(listening: Listening) -> None:
    body = '{"request_id":"r-1","prompt":"a","preview":true}'
    listening.gateway.project(
        TaskSeen(request_id="r-1", body=body, priority="standard", tenant="default", created_at_ms=1)
    )
    previews = listening.gateway.one.app.state.services.previews
    async with reading(listening.one, "/v1/generations/r-1/events") as reader:
        first = await reader.next()
        await previews.wait_watched()
        reader_of(previews).take(record(event(4)))
        second = await reader.next()
        listening.gateway.project(
            ProgressSeen(request_id="r-1", tenant="default", status=TaskStatus.RUNNING, at_ms=2, started=True),
            succeeded("r-1", "default"),
        )
        third = await reader.next()
        assert await reader.next() is None
    assert first is not None
    assert second is not None
    assert third is not None
    assert [one.name for one in (first, second, third)] == ["snapshot", "preview", "succeeded"]
    assert (second.id, second.data) == (
        None,
        {
            "request_id": "r-1",
            "attempt": 1,
            "step": 4,
            "total_steps": 9,
            "index": 0,
            "content_type": "image/webp",
            "data": FILE,
        },
    )
    assert not previews.is_watched


async def test_a_task_that_does_not_ask_has_no_watcher(listening: Listening) -> None:
    listening.gateway.project(
        TaskSeen(request_id="r-1", body="{}", priority="standard", tenant="default", created_at_ms=1)
    )
    async with reading(listening.one, "/v1/generations/r-1/events") as reader:
        assert await reader.next() is not None
        assert not listening.gateway.one.app.state.services.previews.is_watched


async def following(reader: EventReader) -> Event:
    event = await reader.next()
    assert event is not None
    return event


async def test_the_events_of_a_tenant_have_the_previews_of_its_running_tasks_where_asked(listening: Listening) -> None:
    previews = listening.gateway.one.app.state.services.previews
    body = json.dumps({"request_id": "r-1", "prompt": "a fox", "preview": True})

    def seen(name: str) -> TaskSeen:
        return TaskSeen(request_id=name, body=body, priority="standard", tenant="default", created_at_ms=1)

    def running(name: str) -> ProgressSeen:
        return ProgressSeen(request_id=name, status=TaskStatus.RUNNING, at_ms=2, started=True, tenant="default")

    reader = reader_of(previews)
    listening.gateway.project(seen("r-1"), running("r-1"), seen("r-2"))
    async with (
        reading(listening.one, "/v1/events?previews=true") as stream,
        reading(listening.one, "/v1/events") as without,
    ):
        assert (await following(stream)).name == "snapshot"
        await asyncio.wait_for(previews.wait_watched(), 10)
        reader.take(record(event(4)))
        shown = await following(stream)
        assert (shown.name, shown.id, shown.data["step"]) == ("preview", None, 4)
        listening.gateway.project(running("r-2"))
        assert (await following(stream)).name == "running"
        assert previews.watches(TaskKey("r-2", "default"))
        # Of each task the latest, also when several came at once.
        for step in (5, 6):
            reader.take(record(event(step)))
            reader.take(record(event(step, request_id="r-2")))
        latest = [(await following(stream)).data for _ in range(2)]
        listening.gateway.project(succeeded("r-1", "default"), succeeded("r-2", "default"))
        assert {(await following(stream)).name for _ in range(2)} == {"succeeded"}
        assert not previews.is_watched
        assert {(one["request_id"], one["step"]) for one in latest} == {("r-1", 6), ("r-2", 6)}
        names = [(await following(without)).name for _ in range(4)]
        assert names == ["snapshot", "running", "succeeded", "succeeded"]
    assert not previews.is_watched
