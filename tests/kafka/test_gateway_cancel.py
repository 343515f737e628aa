"""Tasks that are canceled through a real gateway while a real worker has them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.brokers.kafka import produce
from kit.gateways.gateway_process import gateway_settings, running_gateway, told
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1) as bench:
        yield bench


@pytest.fixture
async def client(bench: WorkerBench, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with running_gateway(gateway_settings(bench.bootstrap_servers, tmp_path / "gateway", bench.topics)) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=90) as opened:

            async def ready() -> bool:
                return (await opened.get("readyz")).status_code == 200

            await wait_until(ready, deadline_seconds=30, what="readiness")
            yield opened


async def state_once(client: httpx.AsyncClient, request_id: str, status: str) -> dict[str, Any]:
    """The state as soon as it is this one; each request waits for the next change."""
    state: dict[str, Any] = {}

    async def reached() -> bool:
        nonlocal state
        state = (await client.get(f"v1/generations/{request_id}", headers={"prefer": "wait=5"})).json()
        return state.get("status") == status

    await wait_until(reached, deadline_seconds=60, what=f"{request_id} {status}")
    return state


async def test_waiting_tasks_are_canceled_apart_from_the_one_that_runs(
    bench: WorkerBench, client: httpx.AsyncClient
) -> None:
    await bench.start_ready()
    first = task_body("running", "seconds=300", steps=100, group_id="g")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, first)])
    # Only then: an idle worker prepares two tasks side by side, and either may be drawn first.
    await wait_for_step(bench, "running")
    bodies = [task_body(name, "a fox", steps=100, group_id="g") for name in ("waits-1", "waits-2")]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body) for body in bodies])

    async def are_known() -> bool:
        counts = (await told(lambda: client.get("v1/groups/g"))).json()["counts"]
        return (counts["running"], counts["queued"]) == (1, 2)

    # Only what the projector has read can be canceled; another client than the gateway wrote these tasks.
    await wait_until(are_known, deadline_seconds=30, what="one running and two queued tasks in the group")
    waiting = await client.post("v1/generations/cancel", json={"group_id": "g", "waiting_only": True})
    assert {entry["request_id"] for entry in waiting.json()["data"]} == {"waits-1", "waits-2"}
    canceled = await client.post("v1/generations/running/cancel", json={"reason": "wrong prompt"})
    assert (canceled.status_code, canceled.json()["status"]) == (202, "running")

    ended = await state_once(client, "running", "canceled")
    assert ended["error"]["message"] == "canceled: wrong prompt"
    for request_id in ("waits-1", "waits-2"):
        await state_once(client, request_id, "canceled")
    group = (await told(lambda: client.get("v1/groups/g"))).json()
    assert (group["counts"]["canceled"], group["ended"]) == (3, True)
    again = await client.post("v1/generations/running/cancel")
    assert (again.status_code, again.json()["outcome"]) == (200, "ended")
