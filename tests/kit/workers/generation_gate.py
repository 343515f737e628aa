"""Two workers of a test brought to the same point: each generates a task, until the test says so."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from kit.faults.chaos_invariants import PromiseWatch
from kit.waiting import wait_until
from kit.workers.gate import Gate
from kit.workers.worker import WorkerBench

PARTITIONS: Final = 4
"""Of the bench's task topic."""
_EVENT_SECONDS: Final = 120.0


@asynccontextmanager
async def each_worker_generating(bench: WorkerBench, watch: PromiseWatch, *, tasks: int) -> AsyncIterator[None]:
    """Some tasks done, one of each worker being generated until the end of the context, and others pending."""

    def assigned() -> bool:
        lanes = [
            [line for line in worker.events("lane_assigned") if line["lane"] == "standard"] for worker in bench.workers
        ]
        return all(lines and len(lines[-1]["partitions"]) == PARTITIONS // 2 for lines in lanes)

    await wait_until(assigned, deadline_seconds=_EVENT_SECONDS, what="half of the partitions for each worker")
    await watch.submit(2, "seconds=0.2")
    await bench.wait_results(2)
    with Gate() as gate:
        for partition in range(PARTITIONS):
            await watch.submit(tasks // PARTITIONS, gate.prompt, partition=partition)

        async def all_generate() -> bool:
            steps = [json.loads(record.value or b"{}") for record in await bench.records(bench.topics.progress)]
            done = {result["request_id"] for result in await bench.results()}
            busy = {step["worker"] for step in steps if step.get("step") and step["request_id"] not in done}
            return busy == {worker.name for worker in bench.workers}

        await wait_until(all_generate, deadline_seconds=_EVENT_SECONDS, what="a generation of each worker")
        yield
