"""What the pictures are taken of: broker, gateway, dispatcher and a painting worker, and what people did with them.

Everything is real but the engine's pictures and the pool's states, which an operator would write.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fluxpool_client import AsyncClient, Task
from fluxpool_contract.messages.pool_state import PoolLane, PoolState
from fluxpool_gateway.identity import new_key
from fluxpool_gateway.presets.preset import Preset
from fluxpool_gateway.settings import GatewaySettings, WebhookSettings
from kit.brokers.kafka import create_topics, produce
from kit.http.webhook_receiver import Receiver, answering, running_receiver
from kit.programs.warm_start import start_program
from kit.waiting import wait_until
from kit.workers.served_bench import gateway_beside
from kit.workers.worker import WorkerBench, worker_bench
from screenshots.painter import HOLD_WORD

PAINTER: Final = Path(__file__).with_name("painter.py")
TENANT: Final = "atelier"
PROMPTS: Final = (
    "a lighthouse at dusk, long exposure",
    "mountains at golden hour, seen from a pass",
    "a fox at the edge of a forest at night",
    "a harbour at dawn, still water",
    "a glacier in winter light",
    "a boat on a lake before a storm",
    "dunes of a desert after the rain",
    "a lighthouse at night, its beam over the sea",
    "a forest in winter, first snow",
    "the coast at golden hour, from above",
    "mountains at dawn, mist in the valleys",
    "a river at dusk, far from any town",
)
_WAITING: Final = (
    "mountains at dusk, first stars",
    "a fox in a forest at dawn",
    "a lake in winter, a boat in the ice",
)
"""Prompts of the tasks that wait behind the one that runs."""
_LAG_PER_REPLICA: Final = 2
_SCOPES: Final = ("submit", "read", "cancel", "rate", "admin")
_READING_SECONDS: Final = 6.0
SIZES: Final = ((512, 512), (608, 416), (416, 608))


@dataclass(frozen=True, slots=True)
class Ground:
    """What a photographer needs."""

    url: str
    key: str
    """Of a person of the tenant, with every scope."""
    ended: tuple[Task, ...]
    """Tasks with pictures, the oldest first."""


@asynccontextmanager
async def prepared(bootstrap_servers: str, folder: Path) -> AsyncIterator[Ground]:
    """Run everything for a block; at its begin all pictures are painted, and a task is held half-way, others wait."""
    async with worker_bench(bootstrap_servers, folder, model="none", stand_in=True, partitions=1) as bench:
        bench.engine_command = (sys.executable, str(PAINTER))
        pools = f"{bench.topics.tasks}-pools"
        await create_topics(bootstrap_servers, {pools: 1})
        bench.topics = bench.topics.model_copy(update={"pools": pools})
        key_file = folder / "first-key"
        key_file.write_text(new_key())
        worker = bench.start()
        with (
            gateway_beside(
                bench, folder, bootstrap_key_file=key_file, consumer_group=bench.group,
                presets={"draft": Preset(steps=8, guidance=3.0), "final": Preset(steps=28, guidance=3.5)},
                webhooks=WebhookSettings(allow_http=True, allowed_networks=("127.0.0.0/8",)),
            ) as gateway,
            _dispatcher(gateway.settings, folder),
        ):  # fmt: skip
            await worker.wait_ready()
            async with AsyncClient(gateway.url, api_key=key_file.read_text()) as admin, running_receiver() as receiver:
                key = (await admin.create_key("mara", _SCOPES, tenant=TENANT, priorities=["standard", "vip"])).key
                await admin.create_key("render-farm", ["submit", "read"], tenant=TENANT)
                await admin.create_key("art-direction", ["read", "rate"], tenant=TENANT)
                async with AsyncClient(gateway.url, api_key=key) as mara:
                    ended = await _work(bench, mara, receiver)
                    await _write_pools(bench)
                    await _leave_running(mara)
                    yield Ground(gateway.url, key, ended)


async def _work(bench: WorkerBench, client: AsyncClient, receiver: Receiver) -> tuple[Task, ...]:
    """A day of a small studio."""
    receiver.responses["/proofs"] = answering(503, b'{"error": "down for maintenance"}')
    await client.webhooks.create("Asset library", f"{receiver.url}/finished")
    await client.webhooks.create("Proofs", f"{receiver.url}/proofs", event_types=["generation.failed"])
    accepted = []
    for number in range(2 * len(PROMPTS)):
        width, height = SIZES[number % len(SIZES)] if number < len(PROMPTS) else (512, 512)
        # Both images of a prompt have different ones, so that comparisons tell of them.
        preset: Any = "draft" if (number + number // len(PROMPTS)) % 2 else "final"
        sent = await client.submit(
            PROMPTS[number % len(PROMPTS)], width=width, height=height, seed=1000 + number, preset=preset
        )
        accepted.append(sent.request_id)
    for prompt in (
        "a logo over mountains",
        "a cover for a book about the sea",
        "a cover for a map of the coast",
    ):
        await client.wait((await client.submit(prompt, width=512, height=512, steps=8)).request_id)
    ended = tuple([await client.wait(name) for name in accepted])
    first, second = ended[: len(PROMPTS)], ended[len(PROMPTS) :]
    for number, task in enumerate(first):
        await client.rate(task.request_id, score=3 + number % 3)
    for number, (a, b) in enumerate(zip(first[:8], second[:8], strict=True)):
        preferred: Any = "a" if number % 4 else "b"
        await client.compare((a.request_id, 0), (b.request_id, 0), preferred)
    broken = b'{"request_id": "export-17", "prompt": "a harbour at noon", "width": 1000}'
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, broken), (None, b"not JSON at all")])
    await wait_until(lambda: len(receiver.to("/finished")) >= 24, deadline_seconds=120, what="the webhooks")
    return ended


async def _leave_running(client: AsyncClient) -> None:
    runs = await client.submit(f"a lighthouse at dawn, the {HOLD_WORD}'s boat", width=512, height=512, steps=28)

    async def half_way() -> bool:
        progress = (await client.get(runs.request_id)).progress
        return progress is not None and progress.step >= 14

    await wait_until(half_way, deadline_seconds=120, what="a task that runs")
    for prompt in _WAITING:
        await client.submit(prompt, width=512, height=512, steps=28)
    # A second reading of the lanes: by then the gateway knows how fast they are.
    await asyncio.sleep(_READING_SECONDS)


async def _write_pools(bench: WorkerBench) -> None:
    now = datetime.now(UTC)
    lag = 1 + len(_WAITING)
    desired = -(-lag // _LAG_PER_REPLICA)
    lane = PoolLane(name="standard", topic=bench.topics.tasks, consumer_group=bench.group)
    state = PoolState(
        namespace="images", pool="flux-dev", lanes=(lane,), desired_replicas=desired, ready_replicas=1,
        starting_replicas=desired - 1, min_replicas=0, max_replicas=8, constraint="lag", start_seconds=200,
        model="black-forest-labs/FLUX.1-dev",
        reason=f"The lag is {lag}; at {_LAG_PER_REPLICA} per replica it requires {desired} replicas.",
        next_ready_at=now + timedelta(seconds=180), decided_at=now, valid_seconds=3600,
    )  # fmt: skip
    await produce(bench.bootstrap_servers, bench.topics.pools, [(state.key.encode(), state.to_json())])


@contextmanager
def _dispatcher(settings: GatewaySettings, folder: Path) -> Iterator[None]:
    with (folder / "dispatcher.log").open("wb") as log:
        program = start_program(
            "fluxpool_gateway.dispatcher", environment={**os.environ, **settings.to_environment()}, output=log
        )
        try:
            yield
        finally:
            program.kill()
            program.wait()
