"""Every process of a gateway is killed under load of every route that writes: what was acknowledged is in Kafka,
and ends are told to a webhook."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_gateway.settings import GatewaySettings
from kit.brokers.kafka import create_topics, produce, read_topic, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import (
    GatewayProcess,
    gateway_settings,
    gateway_topics,
    running_gateway,
    start_dispatcher,
    start_gateway,
    told,
)
from kit.http.webhook_receiver import LOOPBACK, Receiver, running_receiver
from kit.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

KINDS = ("submit", "batch", "put", "cancel", "rate", "delete")
ENDED = 60
"""Tasks that have images, to rate and to delete."""
LATEST_KILL_SECONDS = 0.1
"""After an acknowledgement: longer than a request takes, so that a kill may come at any stage of the next ones."""


@dataclass
class Load:
    """Clients of all routes that write, and what was acknowledged to them."""

    url: Callable[[], str]
    ended: list[str]
    accepted: set[str] = field(default_factory=set)
    canceled: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    rated: set[str] = field(default_factory=set)
    acknowledged: Counter[str] = field(default_factory=Counter)
    """By what was asked, repeats included."""
    stopping: bool = False

    async def run(self) -> None:
        """Until `stopping`; a request whose answer does not come is not repeated."""
        async with asyncio.TaskGroup() as group:
            for ask in (self._submit, self._batch, self._put, self._cancel, self._rate, self._delete):
                group.create_task(self._repeat(ask))

    async def _repeat(self, ask: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        while not self.stopping:
            try:
                async with httpx.AsyncClient(base_url=self.url(), timeout=20, trust_env=False) as client:
                    while not self.stopping:
                        await ask(client)
            except (httpx.HTTPError, OSError, ValueError):
                # Killed in the midst of it, or not started again yet.
                await asyncio.sleep(0.05)

    async def _submit(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("v1/generations", json={"prompt": "a fox"})
        if answer.status_code == 202:
            self.accepted.add(answer.json()["request_id"])
            self.acknowledged["submit"] += 1

    async def _batch(self, client: httpx.AsyncClient) -> None:
        requests = [{"prompt": f"fox {number}"} for number in range(5)]
        answer = await client.post("v1/generations/batch", json={"requests": requests})
        if answer.is_success:
            items = answer.json()["items"]
            self.accepted |= {item["request_id"] for item in items if not item.get("error")}
            self.acknowledged["batch"] += 1

    async def _put(self, client: httpx.AsyncClient) -> None:
        request_id = str(uuid.uuid4())
        if (await client.put(f"v1/generations/{request_id}", json={"prompt": "a fox"})).is_success:
            self.accepted.add(request_id)
            self.acknowledged["put"] += 1

    async def _cancel(self, client: httpx.AsyncClient) -> None:
        waiting = next(iter(self.accepted - self.canceled), None)
        if waiting is None:
            await asyncio.sleep(0.05)
        elif (await client.post(f"v1/generations/{waiting}/cancel", json={})).is_success:
            self.canceled.add(waiting)
            self.acknowledged["cancel"] += 1

    async def _rate(self, client: httpx.AsyncClient) -> None:
        for request_id in self.ended[: ENDED // 2]:
            answer = await client.put(f"v1/generations/{request_id}/rating", json={"score": 4})
            if answer.is_success:
                self.rated.add(answer.json()["rating_id"])
                self.acknowledged["rate"] += 1

    async def _delete(self, client: httpx.AsyncClient) -> None:
        for request_id in self.ended[ENDED // 2 :]:
            # Deleted again once all are: that is harmless, and acknowledged likewise.
            if (await client.delete(f"v1/generations/{request_id}")).status_code == 204:
                self.deleted.add(request_id)
                self.acknowledged["delete"] += 1


def has_image(request_id: str) -> bytes:
    image = ImageDescription(
        index=0, url="http://images/0.png", object=f"default/2026/04/05/{request_id}/0.png", width=64, height=64,
        seed=7, format="png", content_type="image/png", bytes=5, sha256="0" * 64,
    )  # fmt: skip
    result = GenerationResult(request_id=request_id, image_url=image.url, status=ResultStatus.SUCCESS, images=(image,))
    return result.to_json()


def rows(settings: GatewaySettings) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of what is projected; the last column of a task is the number of its change."""
    with closing(sqlite3.connect(settings.task_store_file())) as connection:
        tasks = connection.execute("SELECT * FROM task ORDER BY request_id, tenant").fetchall()
        judged = connection.execute("SELECT * FROM rating ORDER BY rating_id, tenant").fetchall()
    return {"tasks": [row[:-1] for row in tasks], "ratings": judged}


def told_ends(receiver: Receiver) -> set[str]:
    bodies = [json.loads(message.body) for message in receiver.messages]
    return {body["data"]["request_id"] for body in bodies if body["type"].startswith("generation.")}


async def ids_on(kafka: KafkaCluster, topic: str) -> set[str]:
    return {(record.key or b"").decode() for record in await read_topic(kafka.bootstrap_servers, topic)}


async def projected(gateway: GatewayProcess, ends: dict[str, int]) -> None:
    def is_done() -> bool:
        with suppress(sqlite3.Error), closing(sqlite3.connect(gateway.settings.task_store_file())) as connection:
            found = dict(connection.execute("SELECT topic, sum(next_offset) FROM projected_offset GROUP BY topic"))
            return all(found.get(topic, 0) == end for topic, end in ends.items())
        return False

    await wait_until(is_done, deadline_seconds=60, what=f"the projection of {ends}")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


async def test_nothing_acknowledged_is_lost_whichever_process_is_killed_when(
    kafka: KafkaCluster, receiver: Receiver, tmp_path: Path
) -> None:
    found = await gateway_topics(kafka.bootstrap_servers)
    more = {"control": unique_name("control"), "feedback": unique_name("feedback")}
    topics = TopicNames(**{**found.model_dump(), **more})
    await create_topics(kafka.bootstrap_servers, dict.fromkeys(more.values(), 1))
    targets = {"allow_http": True, "allowed_networks": tuple(map(str, LOOPBACK))}
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics, processes=2, webhooks=targets)
    ended = [f"ended-{number:03}" for number in range(ENDED)]
    tasks = [(name.encode(), json.dumps({"request_id": name, "prompt": "a fox"}).encode()) for name in ended]
    await produce(kafka.bootstrap_servers, topics.tasks, tasks)
    draws = random.Random(5)  # noqa: S311 - when what is killed
    projector_kills, dispatcher_kills = (set(draws.sample(KINDS, 2)) for _ in range(2))

    gateway = start_gateway(settings)
    dispatcher = start_dispatcher(settings, log_path=gateway.log_path)
    try:
        await asyncio.to_thread(gateway.wait_listening)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as client:
            endpoint = {"name": "ends", "url": f"{receiver.url}/ends"}
            assert (await told(lambda: client.post("v1/webhooks", json=endpoint))).status_code == 201
        # Their ends are told while the processes are killed.
        await produce(kafka.bootstrap_servers, topics.results, [(name.encode(), has_image(name)) for name in ended])
        load = Load(url=lambda: gateway.url, ended=ended)
        running = asyncio.create_task(load.run())

        async def goes_on(what: str) -> None:
            before = load.acknowledged[what]

            def more() -> bool:
                assert not running.done(), running.exception()
                return load.acknowledged[what] > before

            await wait_until(more, deadline_seconds=60, what=f"another acknowledgement of {what}")

        for kind in KINDS:
            await goes_on(kind)
            await asyncio.sleep(draws.uniform(0, LATEST_KILL_SECONDS))
            servers = gateway.servers()
            if servers:
                os.kill(draws.choice(servers), signal.SIGKILL)
            if kind in projector_kills:
                await asyncio.to_thread(gateway.restart_projector)
            if kind in dispatcher_kills:
                dispatcher.kill()
                dispatcher.wait()
                dispatcher = start_dispatcher(settings, log_path=gateway.log_path)
        await goes_on("batch")
        await asyncio.sleep(draws.uniform(0, LATEST_KILL_SECONDS))
        gateway.kill()
        dispatcher.kill()
        dispatcher.wait()
        gateway = start_gateway(settings)
        dispatcher = start_dispatcher(settings, log_path=gateway.log_path)
        await asyncio.to_thread(gateway.wait_listening)
        for kind in KINDS:
            await goes_on(kind)
        load.stopping = True
        await running

        written = await ids_on(kafka, topics.tasks) | await ids_on(kafka, topics.tasks_vip)
        assert load.accepted <= written
        assert load.canceled <= await ids_on(kafka, topics.control)
        results = await read_topic(kafka.bootstrap_servers, topics.results)
        assert load.deleted <= {(record.key or b"").decode() for record in results if record.value is None}
        assert load.rated
        assert load.rated <= await ids_on(kafka, topics.feedback)
        ends = {
            topic: len(await read_topic(kafka.bootstrap_servers, topic))
            for topic in (topics.tasks, topics.results, topics.feedback)
        }
        await projected(gateway, ends)
        live = rows(settings)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as client:
            path = f"v1/generations/{min(load.deleted)}"
            assert (await told(lambda: client.get(path))).status_code == 410
        # Of those that no client deletes.
        kept = set(ended[: ENDED // 2])
        await wait_until(lambda: kept <= told_ends(receiver), deadline_seconds=60, what="every end at the webhook")
    finally:
        gateway.kill()
        dispatcher.kill()
        dispatcher.wait()

    rebuilt = gateway_settings(kafka.bootstrap_servers, tmp_path / "rebuilt", topics)
    with running_gateway(rebuilt) as other:
        await projected(other, ends)
    assert rows(rebuilt) == live
