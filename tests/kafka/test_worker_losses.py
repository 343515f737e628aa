"""Records that go away before anybody has done them: said loudly, once, and the rest goes on."""

import asyncio
import signal
from pathlib import Path

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from kit.kafka import produce
from kit.waiting import wait_until
from kit.worker import task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]


async def test_deleted_records_are_told_and_counted_and_those_behind_them_are_done(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1) as bench:
        first = await bench.start_ready()
        await produce(bootstrap_servers, bench.topics.tasks, [(None, task_body(f"done-{n}")) for n in range(2)])
        await bench.wait_committed({0: 2})
        first.signal(signal.SIGTERM)
        assert await first.wait_exit(90) == 0
        assert first.events("records_lost") == []
        await produce(bootstrap_servers, bench.topics.tasks, [(None, task_body(f"later-{n}")) for n in range(4)])
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        for deleted in admin.delete_records([TopicPartition(bench.topics.tasks, 0, 5)]).values():
            await asyncio.wrap_future(deleted)

        second = await bench.start_ready()
        [lost] = await wait_until(
            lambda: second.events("records_lost"), deadline_seconds=60, what="the loss to be told"
        )
        results = await bench.wait_results(3)
        await bench.wait_committed({0: 6})
        async with httpx.AsyncClient(base_url=second.health_url) as client:
            metrics = (await client.get("/metrics")).text

    assert (lost["lane"], lost["partition"], lost["first"], lost["end"]) == ("standard", 0, 2, 5)
    assert 'fluxpool_records_lost_total{lane="standard"} 3.0' in metrics
    assert results[-1]["request_id"] == "later-3"
