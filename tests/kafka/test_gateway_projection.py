"""The task store as a projection of a real broker's topics, read over real HTTP."""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.progress import ProgressEvent, ProgressType
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_gateway.settings import GatewaySettings
from kit.brokers.kafka import create_topics, produce, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway, told
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

ANSWER_SECONDS = 60.0
"""For an answer of a gateway on a busy machine; most take milliseconds."""

NOW = datetime(2026, 4, 5, 10, 0, tzinfo=UTC)
IMAGE = b"not really a PNG, but the very bytes"


@pytest.fixture
async def topics(kafka: KafkaCluster) -> TopicNames:
    return await gateway_topics(kafka.bootstrap_servers)


@pytest.fixture
def settings(kafka: KafkaCluster, topics: TopicNames, tmp_path: Path) -> GatewaySettings:
    return gateway_settings(kafka.bootstrap_servers, tmp_path, topics)


@pytest.fixture
async def gateway(settings: GatewaySettings) -> AsyncIterator[GatewayProcess]:
    with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as opened:
        await wait_until(lambda: answered(opened, "readyz", 200), deadline_seconds=30, what="readiness")
        yield opened


async def answered(client: httpx.AsyncClient, path: str, status: int) -> bool:
    return (await client.get(path)).status_code == status


async def caught_up(client: httpx.AsyncClient) -> bool:
    return "fluxpool_projection_lag_records 0.0" in (await client.get("metrics")).text


async def task_with_status(client: httpx.AsyncClient, request_id: str, status: str) -> dict[str, Any]:
    body: dict[str, Any] = {}

    async def reached() -> bool:
        nonlocal body
        body = (await client.get(f"v1/generations/{request_id}")).json()
        return body.get("status") == status

    await wait_until(reached, deadline_seconds=20, what=f"{request_id} {status}")
    return body


def succeeded(request_id: str, *, image: ImageDescription | None = None, completed_at: datetime = NOW) -> bytes:
    return GenerationResult(
        request_id=request_id,
        image_url="http://images/0.png",
        status=ResultStatus.SUCCESS,
        images=() if image is None else (image,),
        seed=7,
        attempt=1,
        timings={"denoise_ms": 12.5},
        warnings=("cut",),
        completed_at=completed_at,
    ).to_json()


def rows(settings: GatewaySettings) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(settings.task_store_file())) as connection:
        # The last column is the number of the change, which depends on the batches.
        return [row[:-1] for row in connection.execute("SELECT * FROM task ORDER BY request_id")]


def usage(settings: GatewaySettings) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(settings.task_store_file())) as connection:
        return connection.execute("SELECT * FROM usage_hour ORDER BY tenant, hour, outcome").fetchall()


async def test_a_task_is_followed_from_queue_to_image(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames, settings: GatewaySettings
) -> None:
    submitted = await client.post("v1/generations", json={"prompt": "a cat"})
    request_id = submitted.json()["request_id"]
    queued = (await client.get(submitted.headers["location"])).json()
    assert (queued["status"], queued["progress"], queued["images"]) == ("queued", None, [])
    not_yet = await client.get(f"v1/generations/{request_id}/images/0")
    assert (not_yet.status_code, not_yet.json()["error"]["code"]) == (409, "not_finished")

    step = ProgressEvent(request_id=request_id, type=ProgressType.STEP, step=7, total_steps=28, at=NOW)
    start = ProgressEvent(request_id=request_id, type=ProgressType.STARTED, at=NOW)
    await produce(
        kafka.bootstrap_servers, topics.progress, [(request_id.encode(), event.to_json()) for event in (start, step)]
    )

    async def moving() -> bool:
        return (await task_with_status(client, request_id, "running"))["progress"] is not None

    await wait_until(moving, deadline_seconds=20, what="progress")
    running = (await client.get(submitted.headers["location"])).json()
    assert running["progress"] == {"step": 7, "total_steps": 28, "percent": 25}
    assert running["started_at"] == "2026-04-05T10:00:00Z"

    assert settings.storage.folder is not None
    (settings.storage.folder / "default").mkdir()
    (settings.storage.folder / "default" / "0.png").write_bytes(IMAGE)
    description = ImageDescription(
        index=0,
        url="http://images/0.png",
        object="default/0.png",
        width=64,
        height=64,
        seed=7,
        format="png",
        content_type="image/png",
        bytes=len(IMAGE),
        sha256=hashlib.sha256(IMAGE).hexdigest(),
    )
    record = (request_id.encode(), succeeded(request_id, image=description))
    await produce(kafka.bootstrap_servers, topics.results, [record])
    done = await task_with_status(client, request_id, "succeeded")
    assert done["image_url"] == "http://images/0.png"
    assert done["images"][0]["sha256"] == description.sha256
    assert (done["seed"], done["warnings"], done["timings"]) == (7, ["cut"], {"denoise_ms": 12.5})
    assert done["completed_at"] == "2026-04-05T10:00:00Z"
    assert done["created_at"] == queued["created_at"]

    image = await client.get(f"v1/generations/{request_id}/images/0")
    assert (image.status_code, image.content, image.headers["content-type"]) == (200, IMAGE, "image/png")
    assert image.headers["etag"] == f'"{description.sha256}"'
    assert "immutable" in image.headers["cache-control"]
    same = await client.get(f"v1/generations/{request_id}/images/0", headers={"if-none-match": image.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert (await client.get(f"v1/generations/{request_id}/images/1")).status_code == 404
    assert (await client.get(f"v1/generations/{request_id}/images/99")).status_code == 404
    (settings.storage.folder / "default" / "0.png").unlink()
    gone = await client.get(f"v1/generations/{request_id}/images/0")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_a_result_before_its_task_is_shown_and_later_completed(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames
) -> None:
    await produce(kafka.bootstrap_servers, topics.results, [(b"early", succeeded("early"))])
    stub = await task_with_status(client, "early", "succeeded")
    assert (stub["priority"], stub["created_at"]) == (None, None)
    await produce(kafka.bootstrap_servers, topics.tasks_vip, [(b"early", b'{"request_id":"early","prompt":"a"}')])

    async def filled() -> bool:
        return bool((await task_with_status(client, "early", "succeeded"))["priority"] == "vip")

    await wait_until(filled, deadline_seconds=20, what="the task's part")
    assert (await client.get("v1/generations/early")).json()["created_at"] is not None


async def test_unreadable_records_do_not_block_the_projection(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames
) -> None:
    bad = [(None, b"\xff"), (b"x", None), (b"x", b'{"request_id":"bad-task","prompt":"a","width":7}')]
    await produce(kafka.bootstrap_servers, topics.tasks, [*bad, (b"k", b'{"request_id":"good","prompt":"a"}')])
    unread = GenerationResult(request_id=None, image_url=None, status=ResultStatus.FAILED).to_json()
    await produce(kafka.bootstrap_servers, topics.results, [(None, unread), (None, b"{"), (b"k", succeeded("good"))])
    await task_with_status(client, "good", "succeeded")
    assert (await told(lambda: client.get("v1/generations/bad-task"))).status_code == 404


async def test_a_partition_that_is_added_later_is_projected_too(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames
) -> None:
    from confluent_kafka.admin import AdminClient, NewPartitions  # noqa: PLC0415 - untyped and used here alone

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    (added,) = admin.create_partitions([NewPartitions(topics.tasks, 5)]).values()
    await asyncio.wrap_future(added)

    async def written() -> bool:
        known = await asyncio.to_thread(admin.list_topics, topics.tasks, 5)
        led: list[int] = sorted(
            number for number, found in known.topics[topics.tasks].partitions.items() if found.leader >= 0
        )
        return led == [0, 1, 2, 3, 4]

    await wait_until(written, deadline_seconds=20, what="leaders of the new partitions")
    value = b'{"request_id":"late-partition","prompt":"a"}'
    await produce(kafka.bootstrap_servers, topics.tasks, [(b"late-partition", value)], partition=4)
    assert (await task_with_status(client, "late-partition", "queued"))["priority"] == "standard"


async def test_after_its_202_a_task_is_found_at_once_on_either_process(
    kafka: KafkaCluster, topics: TopicNames, tmp_path: Path
) -> None:
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics, processes=2)
    with running_gateway(settings) as gateway:
        gateway.wait_ready()
        # One connection for each request, so that the process that did not accept a task often answers for it.
        limits = httpx.Limits(max_keepalive_connections=0)
        codes = []
        async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS, limits=limits) as client:
            for number in range(200):
                submitted = await client.post("v1/generations", json={"prompt": f"cat {number}"})
                codes.append((await told(partial(client.get, submitted.headers["location"]))).status_code)
        assert codes == [200] * 200
        async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as client:
            assert (await told(lambda: client.get("v1/generations/never-accepted"))).status_code == 404
            assert (await client.get("v1/generations/not%20an%20id")).status_code == 404


async def test_a_restarted_projector_neither_repeats_nor_misses_a_record(
    gateway: GatewayProcess, kafka: KafkaCluster, topics: TopicNames, settings: GatewaySettings
) -> None:
    names = [unique_name("task") for _ in range(600)]
    for part in range(6):
        batch = names[part * 100 : part * 100 + 100]
        await produce(
            kafka.bootstrap_servers,
            topics.tasks,
            [(name.encode(), json.dumps({"request_id": name, "prompt": "a"}).encode()) for name in batch],
        )
        gateway.restart_projector()
    await produce(kafka.bootstrap_servers, topics.results, [(name.encode(), succeeded(name)) for name in names])

    def offsets() -> tuple[int | None, int | None]:
        with closing(sqlite3.connect(settings.task_store_file())) as connection:
            read = dict(connection.execute("SELECT topic, sum(next_offset) FROM projected_offset GROUP BY topic"))
        return read.get(topics.tasks), read.get(topics.results)

    # Of both topics: the results alone would show every task as ended.
    await wait_until(lambda: offsets() == (600, 600), deadline_seconds=60, what="all records projected, each once")
    assert [(row[0], row[3]) for row in rows(settings)] == [(name, "succeeded") for name in sorted(names)]


async def test_a_rebuilt_store_equals_the_first(kafka: KafkaCluster, topics: TopicNames, tmp_path: Path) -> None:
    tasks = [
        (f"t{n}".encode(), json.dumps({"request_id": f"t{n}", "prompt": "a", "seed": n}).encode()) for n in range(40)
    ]
    events = [
        (f"t{n}".encode(), ProgressEvent(request_id=f"t{n}", type="step", step=n, total_steps=40, at=NOW).to_json())
        for n in range(30)
    ]
    await produce(kafka.bootstrap_servers, topics.tasks, tasks)
    await produce(kafka.bootstrap_servers, topics.progress, events)
    # Usage is kept for a quarter.
    now = datetime.now(UTC)
    results = [(f"t{n}".encode(), succeeded(f"t{n}", completed_at=now)) for n in range(20)]
    await produce(kafka.bootstrap_servers, topics.results, results)
    # Repeat some tasks, as a client without a response does.
    await produce(kafka.bootstrap_servers, topics.tasks, tasks[:10])
    built = []
    for attempt in ("first", "second"):
        settings = gateway_settings(kafka.bootstrap_servers, tmp_path / attempt, topics)
        with running_gateway(settings) as gateway:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as client:
                await wait_until(partial(answered, client, "readyz", 200), deadline_seconds=30, what="readiness")
                # Everything was written before, and a task that is certainly unknown is so once all is projected.
                assert (await told(partial(client.get, "v1/generations/none"))).status_code == 404
                await task_with_status(client, "t19", "succeeded")
                await wait_until(partial(caught_up, client), deadline_seconds=30, what="no lag of the projection")
        built.append((rows(settings), usage(settings)))
    assert len(built[0][0]) == 40
    assert [row[3] for row in built[0][1]] == [20]
    assert built[0] == built[1]


async def delete_records(bootstrap_servers: str, topic: str, *, partitions: int) -> None:
    """All of the topic, as its retention does."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    ends = [TopicPartition(topic, number, OFFSET_END) for number in range(partitions)]
    for future in admin.delete_records(ends).values():
        await asyncio.wrap_future(future)


async def test_a_task_is_deleted_with_its_records_and_not_before(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames, settings: GatewaySettings
) -> None:
    waiting = (await client.post("v1/generations", json={"prompt": "a cat"})).json()["request_id"]
    done = (await client.post("v1/generations", json={"prompt": "a fox"})).json()["request_id"]
    await produce(kafka.bootstrap_servers, topics.results, [(done.encode(), succeeded(done))])
    await task_with_status(client, done, "succeeded")
    await delete_records(kafka.bootstrap_servers, topics.tasks, partitions=3)

    async def are_known(*known: str) -> bool:
        return [(await client.get(f"v1/generations/{name}")).status_code for name in (waiting, done)] == [
            200 if name in known else 404 for name in (waiting, done)
        ]

    # The result of the other one is still there.
    await wait_until(lambda: are_known(done), deadline_seconds=60, what="the end of the task without a result")
    assert [row[0] for row in rows(settings)] == [done]
    page = (await client.get("v1/generations")).json()
    assert [task["request_id"] for task in page["data"]] == [done]
    await delete_records(kafka.bootstrap_servers, topics.results, partitions=2)
    await wait_until(are_known, deadline_seconds=60, what="the end of the task with a result")
    assert rows(settings) == []
    # What comes later is projected as ever.
    later = await client.post("v1/generations", json={"prompt": "a dog"})
    assert (await client.get(later.headers["location"])).json()["status"] == "queued"


async def test_until_its_topics_exist_a_gateway_is_not_ready_and_then_it_is(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    names = {role: unique_name(role) for role in ("tasks", "tasks_vip", "results", "progress")}
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, TopicNames(**names))
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as client:
            unready = await client.get("readyz")
            assert unready.status_code == 503
            assert not unready.json()["parts"]["queue"]["ready"]
            refused = await client.post("v1/generations", json={"prompt": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
            await create_topics(kafka.bootstrap_servers, dict.fromkeys(names.values(), 1))
            await wait_until(lambda: answered(client, "readyz", 200), deadline_seconds=30, what="readiness")
            assert (await client.post("v1/generations", json={"prompt": "a"})).status_code == 202
