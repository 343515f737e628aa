"""Events of tasks from a real gateway, while a real worker runs the task and programs of the gateway are killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_gateway.store.task_list import ChangePlace
from kit.brokers.kafka import produce
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, running_gateway, start_gateway
from kit.http.event_streams import Event, EventReader, reading
from kit.workers.worker import WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1) as bench:
        yield bench


@pytest.fixture
async def gateway(bench: WorkerBench, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    settings = gateway_settings(bench.bootstrap_servers, tmp_path / "gateway", bench.topics, processes=2)
    with running_gateway(settings) as running:
        running.wait_ready()
        yield running


async def follow(url: str, path: str, *, known: str | None, until_steps: int) -> EventReader:
    """Read until the client has seen so many steps of the task."""
    headers = {} if known is None else {"last_event_id": known}
    async with httpx.AsyncClient(base_url=url, timeout=90) as client, reading(client, path, **headers) as reader:
        while sum(event.name == "progress" for event in reader.events) < until_steps:
            assert await reader.next(deadline_seconds=120) is not None
    return reader


async def test_a_client_follows_a_real_task_over_killed_servers_and_a_killed_projector(
    bench: WorkerBench, gateway: GatewayProcess
) -> None:
    await bench.start_ready()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=90) as client:
        submitted = await client.post("v1/generations", json={"prompt": "seconds=300", "steps": 100})
    task = f"v1/generations/{submitted.json()['request_id']}"
    before = await follow(gateway.url, f"{task}/events", known=None, until_steps=2)
    for pid in gateway.servers():
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(gateway.wait_listening)
    between = await follow(gateway.url, f"{task}/events", known=before.events[-1].id, until_steps=2)
    gateway.restart_projector()
    headers = {"last_event_id": between.events[-1].id or ""}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=90) as client:
        async with reading(client, f"{task}/events", **headers) as after:
            assert await after.next(deadline_seconds=120) is not None
            assert (await client.post(f"{task}/cancel")).status_code == 202
            await after.rest()
        state = (await client.get(task)).json()
    assert before.events[0].name == "snapshot"
    assert {event.name for event in between.events} == {"progress"}
    assert (after.events[-1].name, after.events[-1].data) == ("canceled", state)
    events = [*before.events, *between.events, *after.events]
    ids = [int(event.id or 0) for event in events]
    assert ids == sorted(set(ids))
    steps = [event.data["progress"]["step"] for event in events if event.name == "progress"]
    assert steps == sorted(set(steps)), "no step twice, and none before a later one"


async def test_every_end_is_told_once_over_killed_servers_and_a_killed_projector(
    bench: WorkerBench, gateway: GatewayProcess
) -> None:
    await bench.start_ready()
    sent: list[str] = []
    ends: list[Event] = []

    async def read(path: str, *, tasks: int, until_ends: int, known: str | None) -> None:
        """Send tasks, and read until so many have ended in all."""
        headers = {} if known is None else {"last_event_id": known}
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=90) as client,
            reading(client, path, **headers) as reader,
        ):
            if known is None:
                assert (await reader.next() or Event()).name == "snapshot"
            names = [f"task-{len(sent) + number}" for number in range(tasks)]
            sent.extend(names)
            bodies = [(None, task_body(name, "a fox", group_id="all")) for name in names]
            await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)
            while len(ends) < until_ends:
                event = await reader.next(deadline_seconds=120)
                assert event is not None
                ends.append(event)

    path = "v1/events?group_id=all&status=succeeded&status=failed"
    await read(path, tasks=4, until_ends=2, known=None)
    for pid in gateway.servers():
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(gateway.wait_listening)
    await read(path, tasks=4, until_ends=6, known=ends[-1].id)
    gateway.restart_projector()
    await read(path, tasks=4, until_ends=12, known=ends[-1].id)
    assert [event.name for event in ends] == ["succeeded"] * 12
    assert sorted(event.data["request_id"] for event in ends) == sorted(sent)
    places = [ChangePlace.parse(event.id or "").number for event in ends]
    assert places == sorted(set(places))


async def test_sigterm_tells_readers_and_ends_the_server(bench: WorkerBench, gateway: GatewayProcess) -> None:
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("waits", "a fox"))])
    async with httpx.AsyncClient(base_url=gateway.url, timeout=90) as client:
        async with reading(client, "v1/generations/waits/events") as reader:
            assert await reader.next() is not None
            stopping = asyncio.ensure_future(asyncio.to_thread(gateway.stop))
            (closed,) = await reader.rest()
        assert closed.data["reason"] == "server_stopping"
        assert await stopping == (0, 0)
    again = start_gateway(gateway.settings)
    try:
        await asyncio.to_thread(again.wait_listening)
        last_event_id = reader.events[0].id or ""
        result = GenerationResult(request_id="waits", image_url=None, status=ResultStatus.SUCCESS)
        await produce(bench.bootstrap_servers, bench.topics.results, [(b"waits", result.to_json())])
        async with (
            httpx.AsyncClient(base_url=again.url, timeout=90) as client,
            reading(client, "v1/generations/waits/events", last_event_id=last_event_id) as reader,
        ):
            assert [event.name for event in await reader.rest()] == ["succeeded"]
    finally:
        again.stop()
