"""Faults that do not stop the projection on a real broker: odd records, recreated topics, a damaged database."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from kit.brokers.kafka import create_topics, produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.odd_batches import RawName
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway, told
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

BOMB = b"0" * 40_000_000
"""Decompressed, more than the limit of a batch; about 40 kB on the wire."""


def a_task(request_id: str) -> tuple[bytes, bytes]:
    return request_id.encode(), json.dumps({"request_id": request_id, "prompt": "a"}).encode()


async def status_of(client: httpx.AsyncClient, request_id: str) -> int:
    return (await client.get(f"v1/generations/{request_id}")).status_code


async def known(client: httpx.AsyncClient, request_ids: Sequence[str]) -> None:
    """Return once each of these tasks has status 200; any other status than 503 meanwhile fails."""

    async def told(request_id: str) -> bool:
        status = await status_of(client, request_id)
        assert status in {200, 503}, f"{request_id}: {status}"
        return status == 200

    for request_id in request_ids:
        await wait_until(partial(told, request_id), deadline_seconds=60, what=f"{request_id} to be known")


async def ready(client: httpx.AsyncClient) -> str:
    """The readiness report of the gateway about its projection, once it is ready."""
    detail = ""

    async def is_ready() -> bool:
        nonlocal detail
        answer = await client.get("readyz")
        detail = answer.json()["parts"]["projection"]["detail"]
        return answer.status_code == 200

    await wait_until(is_ready, deadline_seconds=60, what="readiness")
    return detail


def client_of(gateway: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, timeout=60)


async def test_no_record_stops_the_projection(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics)
    odd_name = [(RawName(b"caf\xe9"), b"1")]
    await produce(kafka.bootstrap_servers, topics.tasks, [a_task("odd-name")], partition=0, headers=odd_name)
    bombs = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "compression.type": "gzip", "message.max.bytes": 2 * len(BOMB)}
    )
    bombs.produce(topics.tasks, value=BOMB, partition=0)
    assert bombs.flush(60) == 0
    event = {"request_id": "r", "type": "step", "step": 1, "total_steps": 10**20, "at": "2026-04-05T10:00:00Z"}
    await produce(kafka.bootstrap_servers, topics.progress, [(b"r", json.dumps(event).encode())], partition=1)
    await produce(kafka.bootstrap_servers, topics.tasks, [a_task("behind")], partition=0)
    with running_gateway(settings) as gateway:
        async with client_of(gateway) as client:
            await known(client, ["odd-name", "behind"])

            async def has_read_all() -> bool:
                metrics = (await client.get("metrics")).text
                return {
                    "fluxpool_projection_quarantined_records_total 2.0",
                    "fluxpool_projection_lag_records 0.0",
                } <= set(metrics.splitlines())

            # The topic of progress is read beside that of tasks, and its lag told with the next heartbeat.
            await wait_until(has_read_all, deadline_seconds=30, what="two quarantined records and no lag")
            assert "2 passed over that cannot be read" in await ready(client)
            assert (await told(lambda: client.get("v1/generations/r"))).status_code == 404
        assert "Traceback" not in gateway.log()
    with closing(sqlite3.connect(settings.task_store_file())) as connection:
        rows = set(connection.execute('SELECT topic, partition, "offset", reason FROM quarantined_record'))
    assert {row[:3] for row in rows} == {(topics.tasks, 0, 1), (topics.progress, 1, 0)}
    assert {"gzip" in reason or "total_steps" in reason for *_, reason in rows} == {True}


async def make_again(bootstrap_servers: str, topic: str, *, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    await asyncio.wrap_future(admin.delete_topics([topic], operation_timeout=10)[topic])

    async def is_gone() -> bool:
        found = await asyncio.to_thread(admin.list_topics, timeout=10)
        return topic not in found.topics

    await wait_until(is_gone, deadline_seconds=30, what="the end of the topic")
    await create_topics(bootstrap_servers, {topic: partitions})


async def test_a_topic_recreated_while_the_gateway_is_down_is_read_from_its_beginning(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics)
    old, new = [f"old-{number}" for number in range(20)], [f"new-{number}" for number in range(25)]
    await produce(kafka.bootstrap_servers, topics.tasks, [a_task(name) for name in old], partition=0)
    with running_gateway(settings) as gateway:
        async with client_of(gateway) as client:
            await known(client, old)
    await make_again(kafka.bootstrap_servers, topics.tasks, partitions=1)
    await produce(kafka.bootstrap_servers, topics.tasks, [a_task(name) for name in new], partition=0)
    with running_gateway(settings) as gateway:
        async with client_of(gateway) as client:
            await known(client, [*new, *old])
            assert (await told(lambda: client.get("v1/generations/never"))).status_code == 404


async def test_a_topic_recreated_under_a_running_gateway_is_read_from_its_beginning(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    with running_gateway(gateway_settings(kafka.bootstrap_servers, tmp_path, topics)) as gateway:
        async with client_of(gateway) as client:
            for length, life in ((20, "first"), (25, "longer"), (5, "shorter")):
                names = [f"{life}-{number}" for number in range(length)]
                await produce(kafka.bootstrap_servers, topics.tasks, [a_task(name) for name in names], partition=0)
                await known(client, names)
                await make_again(kafka.bootstrap_servers, topics.tasks, partitions=3)


def overwrite(file: Path) -> None:
    """Overwrite all but the first two pages, like a failing disk."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as raw:
        raw.seek(2 * 4096)
        raw.write(os.urandom(file.stat().st_size - 2 * 4096))


def delete(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("spoil", [overwrite, delete])
async def test_a_database_that_is_damaged_while_in_use_is_rebuilt(
    kafka: KafkaCluster, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics)
    before = [f"before-{number}" for number in range(300)]
    await produce(kafka.bootstrap_servers, topics.tasks, [a_task(name) for name in before])
    with running_gateway(settings) as gateway:
        async with client_of(gateway) as client:
            await known(client, before)
            spoil(settings.task_store_file())
            await produce(kafka.bootstrap_servers, topics.tasks, [a_task("after")])
            await known(client, ["after", *before])
            assert "passed over" not in await ready(client)
            assert (await told(lambda: client.get("v1/generations/never"))).status_code == 404
        # A projector writes on in a deleted file until it looks for it, twice a second.
        await wait_until(lambda: "database_damaged" in gateway.log(), deadline_seconds=30, what="the damage in the log")
        assert "Traceback" not in gateway.log()
        assert gateway.projector.poll() is None


async def test_a_database_damaged_while_the_gateway_is_down_is_moved_aside(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics)
    names = [f"task-{number}" for number in range(300)]
    await produce(kafka.bootstrap_servers, topics.tasks, [a_task(name) for name in names])
    with running_gateway(settings) as gateway:
        async with client_of(gateway) as client:
            await known(client, names)
    overwrite(settings.task_store_file())
    with running_gateway(settings) as gateway:
        async with client_of(gateway) as client:
            await known(client, names)
        assert "Traceback" not in gateway.log()
        assert "database_damaged" in gateway.log()
        assert ".damaged-" in gateway.log()
