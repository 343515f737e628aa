"""Deliveries of webhooks while other endpoints hang, close, lie, redirect and refuse, and the dispatcher is killed.

The dispatcher is the product's program on SQLite files; tasks are projected into its task store at a constant rate.
The receivers are one real server in this process. Each way has the same events and endpoints that answer; `hostile` has
others beside them, and `killed` also kills the dispatcher at random. Exits 1 when an endpoint that answers lacks an
event, has two out of order, or a message whose signature the verifier of Standard Webhooks refuses.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from standardwebhooks import Webhook

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.settings import GatewaySettings, WebhookSettings
from fluxpool_gateway.webhooks.endpoints import Endpoint, tenants_to_tell
from kit.gateways.webhook_world import World, ended, submitted, wall_clock, webhook_world
from kit.http.webhook_receiver import LOOPBACK, Message, Receiver, answering, hanging, running_receiver, saying
from kit.waiting import wait_until

TENANT: Final = "default"
_END_SECONDS: Final = 180.0


@dataclass(slots=True)
class Arrivals:
    """What endpoints that answer were told, and when."""

    secrets: dict[str, str]
    tasks: dict[str, list[str]] = field(default_factory=dict)
    at: dict[tuple[str, str], float] = field(default_factory=dict)
    """First arrival of a task at a path."""
    refused: int = 0

    async def take(self, message: Message, writer: asyncio.StreamWriter) -> None:
        """A message to an endpoint that answers."""
        now = time.time()
        data = Webhook(self.secrets[message.path]).verify(message.body, message.headers)["data"]
        task = str(data["request_id"])
        self.tasks.setdefault(message.path, []).append(task)
        self.at.setdefault((message.path, task), now)
        await answering(200, b"thanks")(message, writer)


def main() -> int:
    """Measure each way; returns the exit status."""
    options = _options()
    wrong: list[str] = []
    for way in ("alone", "hostile", "killed"):
        wrong += asyncio.run(_measure(way, options))
    for problem in wrong[:20]:
        sys.stderr.write(f"{problem}\n")
    return 1 if wrong else 0


async def _measure(way: str, options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as name, webhook_world(Path(name), wall_clock(), migrated=True) as world:
        async with running_receiver() as receiver:
            return await _measured(way, options, world=world, receiver=receiver, folder=Path(name))


async def _measured(
    way: str, options: argparse.Namespace, *, world: World, receiver: Receiver, folder: Path
) -> list[str]:
    arrivals = Arrivals({})
    paths = [f"/well/{number}" for number in range(options.endpoints)]
    for path in paths:
        arrivals.secrets[path] = _add(world, receiver.url + path).secrets[0].text
        receiver.responses[path] = arrivals.take
    if way != "alone":
        _add_hostile(world, receiver, each=options.hostile)
    names = [f"task-{number}" for number in range(options.events)]
    ended_at: dict[str, float] = {}
    draws = random.Random(options.seed)  # noqa: S311 - when it is killed
    program, kills = _start(folder), 0
    began = time.monotonic()
    kill_at = began + draws.uniform(3, 12)
    try:
        for number, task in enumerate(names):
            await asyncio.sleep(max(0.0, began + number / options.rate - time.monotonic()))
            ended_at[task] = time.time()
            await asyncio.to_thread(_end, world, task)
            if way == "killed" and time.monotonic() > kill_at:
                program.kill()
                program.wait()
                program, kills = _start(folder), kills + 1
                kill_at = time.monotonic() + draws.uniform(3, 12)
        await wait_until(
            lambda: len(arrivals.at) == len(names) * len(paths), deadline_seconds=_END_SECONDS, what="every message"
        )
    finally:
        program.kill()
        program.wait()
    seconds = time.monotonic() - began
    problems = [f"{way}: {path}: out of order" for path in paths if list(dict.fromkeys(arrivals.tasks[path])) != names]
    latencies = sorted(arrivals.at[path, task] - ended_at[task] for path in paths for task in names)
    messages = sum(map(len, arrivals.tasks.values()))
    row = {
        "way": way,
        "deliveries": len(latencies),
        "repeated": messages - len(latencies),
        "kills": kills,
        "others_told": len(receiver.messages) - messages,
        "per_second": round(len(latencies) / seconds, 1),
        "median_ms": round(1000 * statistics.median(latencies)),
        "p99_ms": round(1000 * latencies[int(0.99 * len(latencies))]),
        "worst_ms": round(1000 * latencies[-1]),
    }
    print(json.dumps(row), flush=True)
    return problems


def _add(world: World, url: str, *, tenant: str = TENANT) -> Endpoint:
    return world.add(url, tenant=tenant)


def _add_hostile(world: World, receiver: Receiver, *, each: int) -> None:
    """Endpoints of the same tenants, `each` of every kind but as many as a tenant may have."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    kinds = {
        "hangs": hanging,
        "closes": saying(b""),
        "lies": saying(b"220 mail.example.com ESMTP\r\n\r\n"),
        "moved": answering(301, location="https://example.com/"),
        "refuses": None,
    }
    for number in range(each):
        for kind, respond in kinds.items():
            path = f"/{kind}/{number}"
            if respond is not None:
                receiver.responses[path] = respond
            _add(world, (closed if respond is None else receiver.url) + path, tenant=f"hostile-{number // 4}")


def _end(world: World, task: str) -> None:
    """The task ends, of every tenant."""
    at_ms = wall_clock()()
    world.clock.now_ms = at_ms
    tenants = [TENANT, *(f"hostile-{number}" for number in range(100))]
    known = set(world.database.read(tenants_to_tell))
    world.project(
        *(
            change
            for tenant in tenants
            if tenant in known
            for change in (submitted(task, tenant=tenant), ended(task, at_ms=at_ms, tenant=tenant))
        )
    )


def _start(folder: Path) -> subprocess.Popen[bytes]:
    settings = GatewaySettings(
        kafka=KafkaConnection(bootstrap_servers=("localhost:9092",)),
        storage=StorageSettings(url=(folder / "images").as_uri()),
        database_file=folder / "tasks.sqlite",
        webhooks=WebhookSettings(allow_http=True, allowed_networks=tuple(map(str, LOOPBACK))),
    )
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fluxpool_gateway.dispatcher"],
            env={**os.environ, **settings.to_environment()},
            stdout=log,
            stderr=log,
        )


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=500, help="tasks that end")
    parser.add_argument("--rate", type=float, default=10.0, help="of them a second")
    parser.add_argument("--endpoints", type=int, default=20, help="that answer; each gets every event")
    parser.add_argument("--hostile", type=int, default=20, help="endpoints of each kind that does not")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
