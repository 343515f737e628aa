"""What the states of pools cost a gateway, and how soon it shows a plan: beside one pool, and beside a thousand.

Broker, gateway and projector are real, all on loopback; operators are played: each pool writes its state to the topic
`flux-pools` once in `--every` seconds, evenly, as operators do every 30 s. Meanwhile requests that limit their wait are
submitted, each of which admission compares with an estimate, and `GET /v1/pools` is asked. A plan is a new number of
desired workers of the pool that serves the gateway's lanes: it is seen once `GET /v1/pools` has it.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import psutil
from aiokafka import AIOKafkaProducer

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.messages import PoolLane, PoolState
from kit.brokers.kafka import create_topics, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway
from kit.waiting import wait_until

SUBMIT_SECONDS: Final = 0.1
SERVING: Final = "serving"
"""The pool of the gateway's lanes; all others serve lanes of other gateways."""


async def main() -> int:
    """Measure both; returns the exit status, 1 when a submission was refused."""
    options = _options()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fluxpool-pool-states-") as name:
        folder = Path(name)
        async with KafkaCluster(folder / "kafka", libs=provide_kafka_libs()) as kafka:
            servers = kafka.bootstrap_servers
            topics = (await gateway_topics(servers)).model_copy(update={"pools": unique_name("pools")})
            await create_topics(servers, {topics.pools: 1})
            settings = gateway_settings(servers, folder / "gateway", topics, processes=options.processes)
            with running_gateway(settings) as gateway:
                gateway.wait_ready()
                refused = 0.0
                for pools in (1, options.pools):
                    row = await _measure(gateway, options, pools=pools)
                    print(json.dumps(row), flush=True)
                    refused += row["refused"]
    return int(refused > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pools", type=int, default=1000)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two states of a pool")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--plans", type=int, default=20, help="that are looked for in each")
    parser.add_argument("--processes", type=int, default=1, help="of the gateway's server")
    return parser.parse_args()


async def _measure(gateway: GatewayProcess, options: argparse.Namespace, *, pools: int) -> dict[str, float]:
    topic = gateway.settings.topics.pools
    async with (
        _producer(gateway) as producer,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as client,
        asyncio.TaskGroup() as group,
    ):
        # What each of them says once is the start of an operator, and not measured.
        for number in range(pools):
            await producer.send(topic, **_record(_foreign(number)))
        await _until_seen(client, producer, gateway, desired=1)
        heartbeats = group.create_task(_heartbeats(producer, topic, pools=pools, every=options.every))
        servers = [psutil.Process(pid) for pid in gateway.servers()]
        before, began = _cpu_seconds(servers), time.monotonic()
        submitting = group.create_task(_submit(client, until=began + options.seconds))
        seen: list[float] = []
        for number in range(options.plans):
            await asyncio.sleep(max(0.0, began + number * options.seconds / options.plans - time.monotonic()))
            seen.append(await _until_seen(client, producer, gateway, desired=2 + number))
        took, refused = await submitting
        spent = (_cpu_seconds(servers) - before) / (time.monotonic() - began)
        heartbeats.cancel()
    return {
        "pools": pools,
        "plan_seen_ms": round(1000 * statistics.median(seen), 1),
        "plan_seen_max_ms": round(1000 * max(seen), 1),
        "submit_p50_ms": round(1000 * statistics.median(took), 1),
        "submit_max_ms": round(1000 * max(took), 1),
        "cpu_ms_per_s": round(1000 * spent, 2),
        "memory_mib": round(sum(server.memory_info().rss for server in servers) / 2**20, 1),
        "submitted": len(took),
        "refused": refused,
    }


@asynccontextmanager
async def _producer(gateway: GatewayProcess) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=",".join(gateway.settings.kafka.bootstrap_servers))
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def _heartbeats(producer: AIOKafkaProducer, topic: str, *, pools: int, every: float) -> None:
    """Each pool in its turn, until cancelled."""
    number, due = 0, time.monotonic()
    while True:
        await producer.send(topic, **_record(_foreign(number % pools)))
        number, due = number + 1, due + every / pools
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _until_seen(
    client: httpx.AsyncClient, producer: AIOKafkaProducer, gateway: GatewayProcess, *, desired: int
) -> float:
    """Seconds from the broker's acknowledgement of a plan until a response has it."""
    await producer.send_and_wait(gateway.settings.topics.pools, **_record(_serving(gateway, desired)))
    began = time.monotonic()

    async def is_seen() -> bool:
        answer = (await client.get("v1/pools")).raise_for_status()
        return any(pool["desired"] == desired for pool in answer.json()["data"])

    await wait_until(is_seen, deadline_seconds=60, what="the plan to be shown")
    return time.monotonic() - began


async def _submit(client: httpx.AsyncClient, *, until: float) -> tuple[Sequence[float], int]:
    """How long each submission took, and how many were refused."""
    took: list[float] = []
    refused = 0
    while not took or time.monotonic() < until:
        began = time.monotonic()
        body = {"prompt": "a lighthouse", "max_queue_position": 1_000_000, "deadline_s": 86_400}
        answer = await client.post("v1/generations", json=body)
        took.append(time.monotonic() - began)
        refused += answer.status_code != httpx.codes.ACCEPTED
        await asyncio.sleep(SUBMIT_SECONDS)
    return took, refused


def _cpu_seconds(servers: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (server.cpu_times() for server in servers))


def _record(state: PoolState) -> dict[str, bytes]:
    return {"key": state.key.encode(), "value": state.to_json()}


def _serving(gateway: GatewayProcess, desired: int) -> PoolState:
    groups = gateway.settings.groups()
    lanes = [PoolLane(name=f"lane-{number}", topic=topic, consumer_group=group)
             for number, (group, topic) in enumerate(groups.items())]  # fmt: skip
    return _state(SERVING, lanes, desired=desired)


def _foreign(number: int) -> PoolState:
    lane = PoolLane(name="standard", topic=f"tasks-{number}", consumer_group=f"workers-{number}")
    return _state(f"pool-{number}", [lane], desired=number % 8)


def _state(name: str, lanes: Sequence[PoolLane], *, desired: int) -> PoolState:
    return PoolState(
        namespace="images",
        pool=name,
        lanes=tuple(lanes),
        desired_replicas=desired,
        ready_replicas=0,
        starting_replicas=desired,
        min_replicas=0,
        max_replicas=100,
        constraint="lag",
        reason=f"The lag of {12 * desired} tasks needs {desired} workers at 3.1 s for a task and a target of 60 s.",
        start_seconds=90,
        model="black-forest-labs/FLUX.1-dev",
        model_family="FLUX.1-dev",
        decided_at=datetime.now(UTC),
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
