"""A soak ends when all is done or nothing changes any more. Tests of the kit's watch cover its observations."""

import asyncio
import importlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from kit.brokers.kafka import produce
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.on_change("benchmarks")]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEN_SECONDS = 60.0


@pytest.fixture
def soak_watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak_parts.watch")


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """A bench without workers: the test publishes results and commits."""
    async with worker_bench(bootstrap_servers, tmp_path, model="none", partitions=1) as bench:
        yield bench


async def commit(bench: WorkerBench, offset: int) -> None:
    def send() -> None:
        client = Consumer({"bootstrap.servers": bench.bootstrap_servers, "group.id": bench.group})
        try:
            client.commit(offsets=[TopicPartition(bench.topics.tasks, 0, offset)], asynchronous=False)
        finally:
            client.close()

    await asyncio.to_thread(send)


async def answer(bench: WorkerBench, name: str) -> None:
    body = json.dumps({"request_id": name, "status": "success"}).encode()
    await produce(bench.bootstrap_servers, bench.topics.results, [(name.encode(), body)])


async def submit(bench: WorkerBench, *names: str) -> dict[str, tuple[int, int]]:
    bodies = [(name.encode(), task_body(name)) for name in names]
    return dict(zip(names, await produce(bench.bootstrap_servers, bench.topics.tasks, bodies), strict=True))


async def test_a_soak_is_over_when_every_task_is_answered_and_committed(bench: WorkerBench, soak_watch: Any) -> None:
    places = await submit(bench, "a", "b")
    await answer(bench, "a")
    await answer(bench, "b")
    await commit(bench, 1)
    async with soak_watch.SoakWatch(bench) as watch:
        watch.expect(places)
        await wait_until(lambda: watch.looks >= 2, deadline_seconds=SEEN_SECONDS, what="two observations of Kafka")
        assert (watch.answered, watch.is_over) == (2, False)
        await commit(bench, 2)
        await watch.wait_over(deadline_seconds=SEEN_SECONDS)
        assert watch.is_done
        assert watch.broken == []
        assert watch.working_seconds > 0


async def test_a_soak_ends_when_nothing_changes_any_more(
    bench: WorkerBench, soak_watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_watch, "STUCK_SECONDS", 0.5)
    places = await submit(bench, "a")
    async with soak_watch.SoakWatch(bench) as watch:
        watch.expect(places)
        await watch.wait_over(deadline_seconds=SEEN_SECONDS)
        assert (watch.is_over, watch.is_done) == (True, False)
