"""Whether fuzzed records block or end anything: real Apache Kafka, workers, a gateway, the command line.

Every topic that the components read gets fuzzed records. Each record of a task topic must have a result or a dead
letter, no process may end, no lag may remain, and memory must not grow with the number of records. `fuzz.py http` sends
fuzzed requests to a gateway instead (`fuzz_parts.over_http`).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer
from fuzz_parts import over_http
from fuzz_parts.records import CODECS, FuzzedRecord, fuzzed_records
from report import Cell, print_report, quiet_logs
from soak_parts.ground import add_folder_option, run_folder

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.foreign_producer import RawProducer
from kit.brokers.kafka_cluster import KafkaCluster
from kit.commands.command import fluxpool
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, running_gateway
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, WorkerProcess, worker_bench

GOALS: Final = "goals: unanswered 0, ended_processes 0, lag 0, memory flat for 1,000,000 records"
PARTITIONS: Final = 6
LISTED_PER_SECOND: Final = 1000
"""Far fewer than `dlq list` reads on two idle cores."""
SAMPLE_SECONDS: Final = 10.0
LARGEST_BYTES: Final = 1024 * 1024
TOLD_RECORDS: Final = 20_000
"""Interval of the progress lines."""
ANY_TIME: Final = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": str(2**62),
    # Retention uses the records' timestamps, which may be of 1970.
    "retention.ms": "-1",
}
"""Topics with CreateTime: records keep any timestamps of their producers."""


@dataclass(slots=True)
class Written:
    """Positions of the records of the task topics."""

    ids: dict[tuple[str, int, int], str | None] = field(default_factory=dict)
    other: int = 0


@dataclass(slots=True)
class Memory:
    """Resident bytes of each part over time."""

    samples: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def look(self, parts: Mapping[str, int]) -> None:
        """Take a sample; parts are names with process ids. A process that ended has none: it is counted at the end."""
        for name, pid in parts.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.samples[name].append(psutil.Process(pid).memory_info().rss)

    def rows(self) -> list[dict[str, Cell]]:
        """First, middle and last third of the run, MiB."""
        return [_thirds(name, samples) for name, samples in self.samples.items() if len(samples) >= 3]


def _thirds(name: str, samples: list[int]) -> dict[str, Cell]:
    third = len(samples) // 3
    parts = (samples[:third], samples[third : 2 * third], samples[-third:])
    means = [round(sum(part) / len(part) / 2**20, 1) for part in parts]
    return {"part": name, "first_third_mib": means[0], "middle_mib": means[1], "last_third_mib": means[2]}


async def main() -> int:
    """Run it; return the exit status, 1 when a goal was missed."""
    options = _options()
    quiet_logs("kafka", "aiokafka", level=logging.ERROR)
    with run_folder(options.folder) as folder:
        async with (
            KafkaCluster(folder / "kafka", libs=provide_kafka_libs()) as kafka,
            worker_bench(
                kafka.bootstrap_servers,
                folder,
                model="none",
                partitions=PARTITIONS,
                stand_in=True,
                retry_delays=("5s",),
                topic_config=ANY_TIME,
            ) as bench,
        ):
            settings = gateway_settings(kafka.bootstrap_servers, folder, bench.topics, consumer_group=bench.group)
            with running_gateway(settings) as gateway:
                figures, rows = await _fuzz(bench, gateway, options=options)
    sys.stderr.write(GOALS + "\n")
    print_report(ratios=figures, rows=rows, as_json=options.json)
    return 1 if any(figures[name] for name in ("unanswered", "ended_processes", "lag_records", "listing_failed")) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=20_000, help="fuzzed records, over all topics")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="decides every byte")
    add_folder_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    for name in ("records", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: use 1 or more")
    return options


async def _fuzz(
    bench: WorkerBench, gateway: GatewayProcess, *, options: argparse.Namespace
) -> tuple[dict[str, Cell], list[dict[str, Cell]]]:
    workers = [await bench.start_ready() for _ in range(options.workers)]
    parts = _parts(workers, gateway)
    written, memory, began = Written(), Memory(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(_sample(memory, parts))
        await asyncio.to_thread(_write, bench, options, written)
        lag = await _drain(bench, workers)
        working_seconds = time.monotonic() - began
        sampling.cancel()
    await _wait_projected(gateway)
    listing = await fluxpool(
        *("dlq", "list", "--json", "--limit", "100"),
        folder=bench.folder,
        environment=_environment(bench),
        # The command reads every dead letter, to know which are open.
        deadline_seconds=90 + options.records / LISTED_PER_SECOND,
    )
    ended = [name for name, pid in parts.items() if not psutil.pid_exists(pid)]
    ended += [f"{name} replaced" for name, pid in _parts(workers, gateway).items() if parts[name] != pid]
    answered, doubled = await _answered(bench, written)
    for name in ended:
        sys.stderr.write(f"ended: {name}\n")
    for place in list(written.ids.keys() - answered)[:10]:
        sys.stderr.write(f"unanswered: {place}\n")
    figures: dict[str, Cell] = {
        "unanswered": len(written.ids.keys() - answered),
        "ended_processes": len(ended),
        "lag_records": lag,
        "listing_failed": listing.code,
        "records": len(written.ids) + written.other,
        "task_records": len(written.ids),
        "doubled_dead_letters": doubled,
        "records_per_second": round((len(written.ids) + written.other) / working_seconds, 1),
        "seconds": round(working_seconds, 1),
        "seed": options.seed,
    }
    return figures, memory.rows()


def _parts(workers: list[WorkerProcess], gateway: GatewayProcess) -> dict[str, int]:
    found = {worker.name: worker.pid for worker in workers}
    found |= {f"{worker.name} engine": worker.engine_pid() for worker in workers}
    return found | {f"gateway {name}": pid for name, pid in gateway.pids().items()}


async def _sample(memory: Memory, parts: Mapping[str, int]) -> None:
    while True:
        memory.look(parts)
        await asyncio.sleep(SAMPLE_SECONDS)


def _write(bench: WorkerBench, options: argparse.Namespace, written: Written) -> None:
    """Send all records, one producer for each codec, and one more for header names that librdkafka does not write."""
    producers = {codec: Producer(_producer_settings(bench, codec)) for codec in set(CODECS)}
    with RawProducer(bench.bootstrap_servers) as raw:
        for number, fuzzed in enumerate(fuzzed_records(options.records, seed=options.seed)):
            _send(bench, fuzzed, producers=producers, raw=raw, written=written, partition=number % PARTITIONS)
            if number % TOLD_RECORDS == 0:
                sys.stderr.write(f"{number} of {options.records} written\n")
    for producer in producers.values():
        if producer.flush(300):
            raise RuntimeError("Kafka did not acknowledge the records in time")


def _producer_settings(bench: WorkerBench, codec: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bench.bootstrap_servers,
        "acks": "all",
        "compression.type": codec,
        "linger.ms": 20,
        "message.max.bytes": LARGEST_BYTES,
    }


def _send(
    bench: WorkerBench,
    fuzzed: FuzzedRecord,
    *,
    producers: Mapping[str, Producer],
    raw: RawProducer,
    written: Written,
    partition: int,
) -> None:
    topic = bench.topics.retry[0] if fuzzed.role == "retry" else str(getattr(bench.topics, fuzzed.role))
    at = partition if fuzzed.role == "tasks" else 0

    def note(offset: int) -> None:
        if fuzzed.role in {"tasks", "tasks_vip"}:
            written.ids[topic, at, offset] = fuzzed.request_id
        else:
            written.other += 1

    record = fuzzed.record
    if record.has_raw_names:
        raw.send(topic, record, partition=at, on_offset=note)
        return

    def delivered(error: object, message: Any) -> None:
        if error is not None:
            raise RuntimeError(f"not written: {error}")
        note(message.offset())

    producer = producers[record.compression]
    extra: dict[str, Any] = {} if record.timestamp_ms is None else {"timestamp": record.timestamp_ms}
    extra["headers"] = [(name.decode(), value) for name, value in record.headers]
    while True:
        try:
            producer.produce(topic, record.value, record.key, partition=at, on_delivery=delivered, **extra)
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return


async def _drain(bench: WorkerBench, workers: list[WorkerProcess]) -> int:
    """Wait until no record is left to be read, as long as there is progress; return the remaining lag."""
    ends = await _ends(bench)
    best, since = None, time.monotonic()
    while True:
        committed = await bench.committed()
        # Retries are relayed after the ends that were read.
        lag = sum(max(0, end - committed.get(partition, 0)) for partition, end in ends.items())
        if lag == 0 or all(worker.process.poll() is not None for worker in workers):
            return lag
        if best is None or lag < best:
            best, since = lag, time.monotonic()
            sys.stderr.write(f"lag {lag}\n")
        if time.monotonic() - since > 60:
            return lag
        await asyncio.sleep(2)


async def _ends(bench: WorkerBench) -> dict[int, int]:
    async with AIOKafkaConsumer(**_reader_options(bench)) as consumer:
        partitions = [TopicPartition(bench.topics.tasks, number) for number in range(PARTITIONS)]
        return {found.partition: end for found, end in (await consumer.end_offsets(partitions)).items()}


async def _wait_projected(gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:

        async def ready() -> bool:
            return (await client.get("readyz")).status_code == 200

        await wait_until(ready, deadline_seconds=60, what="the gateway to be ready")


async def _answered(bench: WorkerBench, written: Written) -> tuple[set[tuple[str, int, int]], int]:
    """Positions of records with a result, and how many dead letters repeat another's origin."""
    dead_letters: set[tuple[str, int, int]] = set()
    count = 0
    async for record in _read(bench, bench.topics.dead_letters):
        headers = dict(record.headers)
        origin = headers["fluxpool-dlq-origin-topic"].decode()
        place = (int(headers["fluxpool-dlq-origin-partition"]), int(headers["fluxpool-dlq-origin-offset"]))
        dead_letters.add((origin, *place))
        count += 1
    ids = set()
    async for record in _read(bench, bench.topics.results):
        try:
            ids.add(json.loads(record.value or b"null")["request_id"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    by_result = {place for place, request_id in written.ids.items() if request_id in ids}
    return dead_letters | by_result, count - len(dead_letters)


async def _read(bench: WorkerBench, topic: str) -> Any:
    async with AIOKafkaConsumer(**_reader_options(bench)) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    yield record


def _reader_options(bench: WorkerBench) -> dict[str, Any]:
    return aiokafka_options(KafkaConnection(bootstrap_servers=(bench.bootstrap_servers,)), client_id="fuzz")


def _environment(bench: WorkerBench) -> dict[str, str]:
    settings = bench.settings("reader").to_environment()
    return {name: text for name, text in settings.items() if "_KAFKA_" in name or "_TOPICS_" in name}


if __name__ == "__main__":
    sys.exit(over_http.main(sys.argv[2:]) if sys.argv[1:2] == ["http"] else asyncio.run(main()))
