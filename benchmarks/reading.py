"""How soon a task is read over HTTP with 1,000,000 tasks stored, while the projector saves others.

Gateway with API keys, projector and broker are real; the stored tasks are saved by the projector's own code, without
Kafka. `GET /v1/generations/{id}` is sent in an open loop at a constant rate, each for a task drawn at random, first
without other work (`idle`), then beside tasks and results that the projector reads from Kafka (`projecting`).
"""

import argparse
import asyncio
import multiprocessing
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from accept_parts.open_loop import request_bytes, run_open_loop
from confluent_kafka import Producer
from projection import open_sqlite, project, result_record, task_record
from report import Cell, print_report, quiet_logs

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_gateway.identity import new_key
from fluxpool_gateway.store.task_store import TaskStoreWriter
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway

CONNECTIONS: Final = 64
GOAL_MS: Final = 10
GOALS: Final = f"goal: p99_ms <= {GOAL_MS} while projecting (p99_to_goal <= 1)"
FILLED_AT_ONCE: Final = 50_000
SEND_SECONDS: Final = 0.02


async def main() -> int:
    """Measure both ways; returns the exit status, 1 when a read was not answered with the task."""
    options = _options()
    quiet_logs("aiokafka")
    with tempfile.TemporaryDirectory(prefix="fluxpool-reading-") as name:
        folder = Path(name)
        async with KafkaCluster(folder / "kafka", libs=provide_kafka_libs()) as kafka:
            (folder / "key").write_text(new_key())
            settings = gateway_settings(
                kafka.bootstrap_servers,
                folder / "gateway",
                await gateway_topics(kafka.bootstrap_servers),
                bootstrap_key_file=folder / "key",
            )
            _fill(folder / "gateway" / "tasks.sqlite", tasks=options.tasks)
            with running_gateway(settings) as gateway:
                gateway.wait_ready()
                rows = [await _measure(gateway, folder, options, way) for way in ("idle", "projecting")]
    ratios: dict[str, Cell] = {
        "p99_to_goal": round(float(rows[1]["p99_ms"] or 0) / GOAL_MS, 2),
        "projecting_to_idle": round(float(rows[1]["p99_ms"] or 0) / float(rows[0]["p99_ms"] or 1), 2),
        "tasks": options.tasks,
    }
    sys.stderr.write(GOALS + "\n")
    print_report(ratios=ratios, rows=rows, as_json=options.json)
    return int(any(row["failed"] for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="that are stored")
    parser.add_argument("--rate", type=float, default=200, help="reads a second")
    parser.add_argument("--projected-rate", type=float, default=200, help="tasks that are sent and end each second")
    parser.add_argument("--seconds", type=float, default=30, help="length of each run")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def _fill(file: Path, *, tasks: int) -> None:
    file.parent.mkdir(parents=True)
    with open_sqlite(file) as engine:
        writer = TaskStoreWriter(engine)
        for start in range(0, tasks, FILLED_AT_ONCE):
            names = [_name(number) for number in range(start, min(start + FILLED_AT_ONCE, tasks))]
            project(writer, [make(name) for name in names for make in (task_record, result_record)])


def _name(number: int) -> str:
    return f"0195e3c0-0000-7000-8000-{number:012x}"


async def _measure(gateway: GatewayProcess, folder: Path, options: argparse.Namespace, way: str) -> dict[str, Cell]:
    chance = random.Random(1)  # noqa: S311 - not for cryptography
    host, _, port = gateway.url.removeprefix("http://").rstrip("/").partition(":")
    authorization = f"Bearer {(folder / 'key').read_text()}"

    def make_request() -> bytes:
        path = f"/v1/generations/{_name(chance.randrange(options.tasks))}"
        return request_bytes("GET", path, host=f"{host}:{port}", authorization=authorization)

    sender = None if way == "idle" else _started_sender(gateway, rate_per_second=options.projected_rate)
    read = await run_open_loop(
        make_request,
        host=host,
        port=int(port),
        expected=b"200",
        rate_per_second=options.rate,
        seconds=options.seconds,
        connections=CONNECTIONS,
    )
    if sender is not None:
        sender.kill()
        sender.join()
    return {
        "way": way,
        "rate": options.rate,
        "p50_ms": round(read.quantile_milliseconds(0.50), 2),
        "p99_ms": round(read.quantile_milliseconds(0.99), 2),
        "read": read.accepted,
        "failed": read.refused + read.unanswered,
    }


def _started_sender(gateway: GatewayProcess, *, rate_per_second: float) -> BaseProcess:
    """A process of its own: in this one it would delay the reads."""
    topics, servers = gateway.settings.topics, ",".join(gateway.settings.kafka.bootstrap_servers)
    arguments = (servers, topics.tasks, topics.results, rate_per_second)
    sender = multiprocessing.get_context("spawn").Process(target=_send, args=arguments, daemon=True)
    sender.start()
    return sender


def _send(servers: str, tasks: str, results: str, rate_per_second: float) -> None:
    """Write tasks and their results to Kafka until killed."""
    producer = Producer({"bootstrap.servers": servers})
    began, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate_per_second)
        for number in range(sent, due):
            name = f"beside-{began}-{number}"
            for topic, (_, key, value) in ((tasks, task_record(name)), (results, result_record(name))):
                producer.produce(topic, value, key)
        sent = due
        producer.poll(0)
        time.sleep(SEND_SECONDS)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
