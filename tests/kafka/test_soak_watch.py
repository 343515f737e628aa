"""The soak's watch sees offsets that go wrong, on a real group; a watch that saw nothing would prove nothing."""

import asyncio
import importlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from kit.kafka import produce
from kit.waiting import wait_until
from kit.worker import WorkerBench, task_body, worker_bench

pytestmark = pytest.mark.kafka

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEN_SECONDS = 60.0


@pytest.fixture
def soak_watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak_watch")


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """Without any worker: the test answers and commits."""
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


async def seen_by(watch: Any, looks: int) -> None:
    """Wait until the watch has looked that often since now."""
    before = watch.looks
    await wait_until(
        lambda: watch.looks >= before + looks, deadline_seconds=SEEN_SECONDS, what=f"{looks} more looks at Kafka"
    )


async def test_the_watch_sees_offsets_that_pass_unanswered_tasks_or_go_back_and_the_end(
    bench: WorkerBench, soak_watch: Any
) -> None:
    names = ["a", "b", "c"]
    sent = await produce(
        bench.bootstrap_servers, bench.topics.tasks, [(name.encode(), task_body(name)) for name in names]
    )
    await answer(bench, "a")
    await commit(bench, 1)
    async with soak_watch.SoakWatch(bench, dict(zip(names, sent, strict=True))) as watch:
        await seen_by(watch, 2)
        assert (watch.answered, watch.offsets_broken, watch.is_done) == (1, [], False)

        await commit(bench, 2)
        await seen_by(watch, 2)
        await commit(bench, 1)
        await seen_by(watch, 2)
        assert watch.offsets_broken == [
            "offset 2 of partition 0 passed b at 1, which has no answer",
            "the offset of partition 0 went back from 2 to 1",
        ]

        await answer(bench, "b")
        await answer(bench, "c")
        await commit(bench, 3)
        await watch.wait_over(deadline_seconds=SEEN_SECONDS)
        assert watch.is_done
        assert len(watch.offsets_broken) == 2
