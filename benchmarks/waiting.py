"""How long tasks wait for a device at 80 % load with partitions chosen by load, round robin, or by the key's hash.

Broker, group members, ledger, commits, producer and partitioner are real; a device only takes time, and times are
scaled down so that a run takes minutes. The three ways run concurrently, each with its own topic and workers, on the
same arrivals and sizes. They are compared with one computed queue for all workers, in which only the devices take time.
"""

import argparse
import asyncio
import heapq
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from report import Cell, print_report, quiet_logs
from waiting_parts.senders import Sender, Way, running_senders
from waiting_parts.workers import Journal, Workers

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicSpec
from fluxpool_transport.kafka.topic_admin import ensure_topics
from kit.brokers.kafka_cluster import KafkaCluster

JVM_OPTIONS: Final = ("-Xmx1g", "-XX:+UseSerialGC")
SIZES: Final = ((0.5, 0.25), (1.0, 0.5), (1.5, 0.25))
"""Sizes of tasks, with their shares; the sender knows them, as a gateway does from steps, pixels and images."""
NOISE: Final = 0.05
"""Standard deviation of a device's time around that of the size."""
WARM_UP_SHARE: Final = 0.1
"""The first tasks, in an empty system, are not counted."""
FINISH_SECONDS: Final = 120.0
IDEAL: Final = "ideal"
GOALS: Final = "goals: p95_to_key_hash <= 0.3, p95_to_ideal <= 1.5"


@dataclass(frozen=True, slots=True)
class Load:
    """The tasks of one seed."""

    due_seconds: list[float]
    """When each is sent, in seconds from the begin of the run."""
    sizes: list[float]
    service_seconds: list[float]

    @property
    def counted(self) -> range:
        """The numbers of the tasks whose waits count."""
        return range(int(WARM_UP_SHARE * len(self.sizes)), len(self.sizes))


@dataclass(frozen=True, slots=True)
class Run:
    """One way with its own topic, on the load of one seed."""

    connection: KafkaConnection
    way: Way
    topic: str
    load: Load
    options: argparse.Namespace
    shared_folder: Path | None

    @property
    def group(self) -> str:
        """The workers' consumer group."""
        return f"{self.topic}-group"


async def main() -> int:
    """Run everything; return the exit status, 1 when a task was lost."""
    options = _options()
    quiet_logs("aiokafka")
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="fluxpool-waiting-") as name:
        async with KafkaCluster(Path(name), libs=provide_kafka_libs(), jvm_options=JVM_OPTIONS) as kafka:
            connection = KafkaConnection(bootstrap_servers=tuple(kafka.bootstrap_servers.split(",")))
            for seed in range(options.seeds):
                rows += await _side_by_side(connection, options, seed, folder=Path(name))
    sys.stderr.write(GOALS + "\n")
    print_report(ratios=_ratios(rows), rows=rows, as_json=options.json)
    return 1 if any(row["lost"] for row in rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--partitions", type=int, default=24)
    parser.add_argument("--load", type=float, default=0.8, help="share of the devices' time that the tasks take")
    parser.add_argument("--service-seconds", type=float, default=1.5, help="mean time of a task")
    parser.add_argument("--tasks", type=int, default=400, help="of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs, each with other arrivals and sizes")
    parser.add_argument("--senders", type=int, default=1, help="partitioners, like those of a gateway's processes")
    parser.add_argument("--apart", action="store_true", help="they share no memory, like those of gateway replicas")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def _ratios(rows: Sequence[dict[str, Cell]]) -> dict[str, Cell]:
    """Ratios of the means over all seeds, so that an unlucky seed of one way does not decide."""

    def mean(way: str, quantile: str) -> float:
        return statistics.fmean(float(row[quantile] or 0) for row in rows if row["way"] == way)

    def ratio(way: str, quantile: str) -> float | None:
        beside = mean(way, quantile)
        return round(mean(Way.BY_LOAD, quantile) / beside, 2) if beside else None

    ratios: dict[str, Cell] = {
        f"{quantile}_to_{name}": ratio(way, f"{quantile}_ms")
        for quantile in ("p95", "p99")
        for name, way in (("key_hash", Way.KEY_HASH), ("round_robin", Way.ROUND_ROBIN), ("ideal", IDEAL))
    }
    return {**ratios, "lost": sum(int(row["lost"] or 0) for row in rows)}


# The load


def _draw_load(options: argparse.Namespace, seed: int) -> Load:
    source = random.Random(seed)  # noqa: S311 - no secret
    rate_per_second = options.load * options.workers / options.service_seconds
    sizes = source.choices([size for size, _ in SIZES], [share for _, share in SIZES], k=options.tasks)
    due, moment = [], 0.0
    for _ in sizes:
        moment += source.expovariate(rate_per_second)
        due.append(moment)
    service = [options.service_seconds * size * max(0.1, source.gauss(1, NOISE)) for size in sizes]
    return Load(due_seconds=due, sizes=sizes, service_seconds=service)


def _ideal_waits(load: Load, *, workers: int) -> list[float]:
    """The wait of each task in one queue for all workers, first come, first served."""
    free_at = [0.0] * workers
    waits = []
    for due, seconds in zip(load.due_seconds, load.service_seconds, strict=True):
        begins = max(due, free_at[0])
        heapq.heapreplace(free_at, begins + seconds)
        waits.append(begins - due)
    return waits


# The runs


async def _side_by_side(
    connection: KafkaConnection, options: argparse.Namespace, seed: int, *, folder: Path
) -> list[dict[str, Cell]]:
    load = _draw_load(options, seed)
    folders = {way: None if options.apart else Path(tempfile.mkdtemp(dir=folder)) for way in Way}
    runs = [
        Run(connection, way, f"tasks-{seed}-{number}", load, options, folders[way]) for number, way in enumerate(Way)
    ]
    await ensure_topics(connection, [TopicSpec(run.topic, options.partitions, 1) for run in runs])
    ready = asyncio.Barrier(len(runs))
    waits: dict[str, list[float | None]] = {IDEAL: [*_ideal_waits(load, workers=options.workers)]}
    async with asyncio.TaskGroup() as group:
        measured = {run.way: group.create_task(_measure(run, ready)) for run in runs}
    waits |= {way: task.result() for way, task in measured.items()}
    rows = [_row(way, seed, [found[number] for number in load.counted]) for way, found in waits.items()]
    for row in rows:
        sys.stderr.write(f"{row}\n")
    return rows


async def _measure(run: Run, ready: asyncio.Barrier) -> list[float | None]:
    """The wait of each task, in seconds; None for one that was never begun."""
    options, journal = run.options, Journal(run.load.service_seconds)
    async with (
        Workers(
            run.connection,
            topic=run.topic,
            group=run.group,
            partitions=options.partitions,
            count=options.workers,
            journal=journal,
        ),
        running_senders(
            run.connection,
            run.way,
            topic=run.topic,
            group=run.group,
            partitions=options.partitions,
            count=options.senders,
            shared_folder=run.shared_folder,
        ) as senders,
    ):
        await ready.wait()
        due_at = await _send(run.load, senders)
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                while len(journal.finished) < len(due_at):
                    journal.progressed.clear()
                    await journal.progressed.wait()
        except TimeoutError:
            pass
    return [journal.begun_at[number] - due if number in journal.begun_at else None for number, due in enumerate(due_at)]


async def _send(load: Load, senders: Sequence[Sender]) -> list[float]:
    """Send every task when it is due; return these times, in monotonic seconds."""
    begin = time.monotonic()
    due_at = [begin + seconds for seconds in load.due_seconds]
    async with asyncio.TaskGroup() as group:
        for number, due in enumerate(due_at):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(senders[number % len(senders)].send(number, load.sizes[number]))
    return due_at


def _row(way: str, seed: int, waits: Sequence[float | None]) -> dict[str, Cell]:
    known_ms = sorted(1000 * wait for wait in waits if wait is not None)

    def quantile(share: float) -> float:
        return round(known_ms[min(len(known_ms) - 1, int(share * len(known_ms)))], 1)

    return {
        "way": str(way),
        "seed": seed,
        "p50_ms": quantile(0.5),
        "p95_ms": quantile(0.95),
        "p99_ms": quantile(0.99),
        "mean_ms": round(statistics.fmean(known_ms), 1),
        "tasks": len(waits),
        "lost": len(waits) - len(known_ms),
    }


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
