"""How long the device is idle between two tasks of a backlog: the worker and a simple serial loop.

Real Apache Kafka, the real agent process and the engine's process loop; only the model is a stand-in that takes a fixed
time and returns 1024x1024 pixels, which are encoded and stored. The idle time is measured on the device: from the end
of one image to the begin of the next. The broker, the store, the agent and the stand-in share this machine's cores,
which a GPU would not; below about 1.5 free cores the encoding is the limit, not the worker's overhead. After every run
results and images are counted.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import structlog
from confluent_kafka import Consumer, Producer, TopicPartition
from moto.server import ThreadedMotoServer
from overhead_parts.device import JOURNAL_VARIABLE, SECONDS_VARIABLE, TASKS_VARIABLE, read_journal
from pydantic import SecretStr
from report import Cell, print_report

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.settings.worker import Lane, StorageSettings, WorkerSettings
from fluxpool_transport.kafka.topic_admin import ensure_topics
from kit.brokers.kafka_cluster import KafkaCluster

FOLDER: Final = Path(__file__).parent
# The broker as in production: local mode's default skips the JIT's second stage for a faster start.
JVM_OPTIONS: Final = ("-Xmx1g", "-XX:+UseSerialGC")
STEPS: Final = 4
BUCKET: Final = "images"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
SLOWEST_SECONDS_PER_TASK: Final = 3.0
"""Besides the device's time; a run that takes longer is stuck."""
GOALS: Final = "goals: idle_p50_ms <= 2, ratio_to_simple >= 20, lost 0"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to process the tasks."""

    way: str
    partitions: int
    store: str

    @property
    def name(self) -> str:
        """Its name for `--only`."""
        return f"{self.way}-{self.partitions}-{self.store}"


VARIANTS: Final = (
    Variant("simple", 6, "disk"),
    Variant("fluxpool", 6, "disk"),
    Variant("simple", 1, "disk"),
    Variant("fluxpool", 1, "disk"),
    Variant("fluxpool", 6, "s3"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One variant with its own topics, group and folder."""

    variant: Variant
    bootstrap_servers: str
    folder: Path
    topics: TopicNames
    storage: StorageSettings
    tasks: int
    seconds_per_task: float

    @property
    def journal(self) -> Path:
        """The file in which the device records its work."""
        return self.folder / "journal"

    @property
    def deadline_seconds(self) -> float:
        """After this long the run is stuck."""
        return START_SECONDS + self.tasks * (self.seconds_per_task + SLOWEST_SECONDS_PER_TASK)

    def environment(self) -> dict[str, str]:
        """The environment of the run's processes, with the settings of the simple loop."""
        return {
            JOURNAL_VARIABLE: str(self.journal),
            SECONDS_VARIABLE: str(self.seconds_per_task),
            TASKS_VARIABLE: str(self.tasks),
            "OVERHEAD_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "OVERHEAD_GROUP": f"{self.topics.tasks}-group",
            "OVERHEAD_TASKS_TOPIC": self.topics.tasks,
            "OVERHEAD_RESULTS_TOPIC": self.topics.results,
            "OVERHEAD_IMAGES": str(self.folder / "images"),
        }


async def main() -> int:
    """Run everything; return the exit status, 1 when a task has no result or no image."""
    options = _options()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="fluxpool-overhead-") as name, _s3() as s3_endpoint_url:
        folder = Path(name)
        async with KafkaCluster(folder / "kafka", libs=provide_kafka_libs(), jvm_options=JVM_OPTIONS) as kafka:
            for number, variant in enumerate(VARIANTS):
                if variant.name not in options.only:
                    continue
                run = await _prepare(
                    variant,
                    kafka.bootstrap_servers,
                    folder / f"run-{number}",
                    s3_endpoint_url=s3_endpoint_url,
                    options=options,
                )
                rows.append(await _measure(run))
                sys.stderr.write(f"{rows[-1]}\n")
    sys.stderr.write(GOALS + "\n")
    print_report(ratios=_ratios(rows), rows=rows, as_json=options.json)
    return 1 if any(row["lost"] for row in rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=400, help="tasks of each run, produced beforehand")
    parser.add_argument("--seconds-per-task", type=float, default=0.05, help="time of the stand-in for an image")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="leave the other runs out")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.tasks < 2:
        parser.error(f"--tasks {options.tasks}: idle time needs two tasks; use 2 or more")
    if options.seconds_per_task < 0:
        parser.error(f"--seconds-per-task {options.seconds_per_task}: use 0 or more")
    return options


def _ratios(rows: Sequence[Mapping[str, Cell]]) -> dict[str, Cell]:
    def idle(way: str, partitions: int) -> float | None:
        found = [row for row in rows if (row["way"], row["partitions"], row["store"]) == (way, partitions, "disk")]
        return float(found[0]["idle_p50_ms"] or 0) if found else None

    def ratio(partitions: int) -> float | None:
        simple, ours = idle("simple", partitions), idle("fluxpool", partitions)
        return round(simple / ours, 1) if simple is not None and ours is not None else None

    return {
        "ratio_to_simple": ratio(6),
        "ratio_one_partition": ratio(1),
        "idle_p50_ms": idle("fluxpool", 6),
        "lost": sum(int(row["lost"] or 0) for row in rows),
    }


# One run


async def _prepare(
    variant: Variant, bootstrap_servers: str, folder: Path, *, s3_endpoint_url: str, options: argparse.Namespace
) -> Run:
    """New topics with all tasks."""
    await asyncio.to_thread(folder.mkdir)
    run_id = os.urandom(4).hex()
    names = ("tasks", "tasks_vip", "results", "progress", "control", "dead_letters", "feedback")
    topics = TopicNames(**{name: f"overhead-{run_id}-{name}" for name in names}, retry=())
    connection = KafkaConnection(bootstrap_servers=(bootstrap_servers,))
    specs = topic_specs(topics, task_partitions=variant.partitions, replication_factor=1)
    await ensure_topics(connection, specs)
    await asyncio.to_thread(
        _produce, bootstrap_servers, topics.tasks, partitions=variant.partitions, count=options.tasks
    )
    storage = StorageSettings(url=(folder / "images").as_uri())
    if variant.store == "s3":
        storage = StorageSettings(
            url=f"s3://{BUCKET}/{run_id}/",
            endpoint_url=s3_endpoint_url,
            region="us-east-1",
            access_key_id="benchmark",
            secret_access_key=SecretStr("benchmark"),
        )
    return Run(
        variant=variant,
        bootstrap_servers=bootstrap_servers,
        folder=folder,
        topics=topics,
        storage=storage,
        tasks=options.tasks,
        seconds_per_task=options.seconds_per_task,
    )


def _produce(bootstrap_servers: str, topic: str, *, partitions: int, count: int) -> None:
    """Produce the tasks to the partitions round robin."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "linger.ms": 5})
    failed: list[str] = []
    for number in range(count):
        task = {
            "request_id": f"task-{number:06}",
            "prompt": "a futuristic city at sunset, cyberpunk style, highly detailed",
            "width": 1024,
            "height": 1024,
            "steps": STEPS,
            "seed": number,
        }
        producer.produce(
            topic,
            json.dumps(task).encode(),
            partition=number % partitions,
            on_delivery=lambda error, _message: failed.append(str(error)) if error is not None else None,
        )
    unsent = producer.flush(30)
    if unsent or failed:
        raise RuntimeError(f"{unsent} tasks were not sent, {len(failed)} refused: {failed[:1]}")


async def _measure(run: Run) -> dict[str, Cell]:
    log_file = run.folder / "worker.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(["-m", "fluxpool_worker"] if run.variant.way == "fluxpool" else ["-m", "overhead_parts.serial"]),
            env={
                **os.environ,
                "PYTHONPATH": str(FOLDER),
                **run.environment(),
                **(_worker_settings(run).to_environment() if run.variant.way == "fluxpool" else {}),
            },
            stdout=log,
            stderr=log,
        )
    try:
        results = await _collect_results(run, process, log_file)
    finally:
        await _stop(process)
    distinct = {result["request_id"] for result in results if result["status"] == "success"}
    images = await _count_images(run)
    begun, ended = read_journal(run.journal)
    idle_ms = sorted((begin - end) / 1e6 for begin, end in zip(begun[1:], ended[:-1], strict=True))
    return {
        "way": run.variant.way,
        "partitions": run.variant.partitions,
        "store": run.variant.store,
        "idle_p50_ms": round(statistics.median(idle_ms), 3),
        "idle_p95_ms": round(_quantile(idle_ms, 0.95), 3),
        "idle_p99_ms": round(_quantile(idle_ms, 0.99), 3),
        "idle_mean_ms": round(statistics.fmean(idle_ms), 3),
        "load_average": round(os.getloadavg()[0], 1),
        "tasks_per_second": round(len(begun) / ((ended[-1] - begun[0]) / 1e9), 2),
        "tasks": run.tasks,
        "generated": len(begun),
        "results": len(results),
        "images": images,
        "lost": run.tasks - min(len(distinct), images),
    }


def _worker_settings(run: Run) -> WorkerSettings:
    return WorkerSettings(
        kafka=KafkaConnection(bootstrap_servers=(run.bootstrap_servers,)),
        storage=run.storage,
        topics=run.topics,
        consumer_group=f"{run.topics.tasks}-group",
        lanes=(
            Lane(name="standard", topic=run.topics.tasks),
            Lane(name="vip", topic=run.topics.tasks_vip, preference=10),
        ),
        worker_name="overhead",
        health_host="127.0.0.1",
        health_port=0,
        engine_command=(sys.executable, str(FOLDER / "overhead_parts" / "device.py")),
    )


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


async def _collect_results(run: Run, process: asyncio.subprocess.Process, log_file: Path) -> list[dict[str, Any]]:
    """Read the results topic until every task has one; without a group, and rarely, so that it does not disturb."""
    consumer = Consumer({"bootstrap.servers": run.bootstrap_servers, "group.id": "unused", "enable.auto.commit": False})
    try:
        metadata = await asyncio.to_thread(consumer.list_topics, run.topics.results, 10)
        consumer.assign(
            [TopicPartition(run.topics.results, number, 0) for number in metadata.topics[run.topics.results].partitions]
        )
        results: list[dict[str, Any]] = []
        deadline = time.monotonic() + run.deadline_seconds
        while len({result["request_id"] for result in results}) < run.tasks:
            ended = process.returncode is not None
            messages = await asyncio.to_thread(consumer.consume, 1000, 1.0)
            results += [json.loads(message.value()) for message in messages if message.error() is None]
            if (ended and not messages) or time.monotonic() > deadline:
                raise _stuck(run, process, log_file, results=len(results))
        return results
    finally:
        await asyncio.to_thread(consumer.close)


def _stuck(run: Run, process: asyncio.subprocess.Process, log_file: Path, *, results: int) -> RuntimeError:
    status = "still runs" if process.returncode is None else f"ended with {process.returncode}"
    return RuntimeError(
        f"{run.variant.name}: {results} of {run.tasks} results, the worker {status}:\n{log_file.read_text()[-4000:]}"
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


# Stores


async def _count_images(run: Run) -> int:
    if run.storage.folder is not None:
        return sum(1 for path in run.storage.folder.rglob("*.png"))
    prefix = run.storage.url.removeprefix(f"s3://{BUCKET}/")
    keys: list[str] = []
    token: str | None = None
    async with httpx.AsyncClient(base_url=run.storage.endpoint_url or "") as client:
        while True:
            query = {"list-type": "2", "prefix": prefix, **({"continuation-token": token} if token else {})}
            # moto requires a signature but does not check it.
            answer = await client.get(BUCKET, params=query, headers={"Authorization": "AWS benchmark:unchecked"})
            answer.raise_for_status()
            keys += re.findall(r"<Key>([^<]*\.png)</Key>", answer.text)
            found = re.search(r"<NextContinuationToken>([^<]*)</NextContinuationToken>", answer.text)
            if found is None:
                return len(keys)
            token = found[1]


@contextmanager
def _s3() -> Iterator[str]:
    """An S3 service on loopback with an empty bucket; yield its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        httpx.put(f"http://{host}:{port}/{BUCKET}").raise_for_status()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
