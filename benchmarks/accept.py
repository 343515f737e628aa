"""Accepted requests a second and their latency, with acks=all on a real broker: the gateway and a simple server.

The gateway checks an API key in every request; the others take any.
Closed loop by wrk for throughput, open loop at a constant rate for latency. After every run the records in Kafka are
counted: an accepted request without a record is lost. (wrk ends with up to one open request a connection, so there can
be that many more records than responses; the open loop waits for every response and must match exactly.)
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from accept_parts.open_loop import request_bytes, run_open_loop
from accept_parts.processor_time import ProcessorTime
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from report import Cell, print_report

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.identity import new_key
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_transport.kafka.topic_admin import ensure_topics
from kit.brokers.kafka_cluster import KafkaCluster

CONNECTIONS: Final = (64, 128)
WARM_UP_SECONDS: Final = 3
START_DEADLINE_SECONDS: Final = 60.0
# The broker as in production: local mode's default skips the JIT's second stage for a faster start.
JVM_OPTIONS: Final = ("-Xmx1g", "-XX:+UseSerialGC")
FOLDER: Final = Path(__file__).parent
BODY: Final = json.dumps(
    {
        "prompt": "a futuristic city at sunset, cyberpunk style, highly detailed",
        "negative_prompt": "blurry, low resolution",
        "width": 1024,
        "height": 1024,
        "steps": 50,
        "seed": 12345,
    }
)
WRK_SCRIPT: Final = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
function done(summary, latency, requests)
  io.write(string.format('RESULT {"requests":%%d,"microseconds":%%d,"refused":%%d,"broken":%%d,"p50":%%d,"p99":%%d}\\n',
    summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
GOALS: Final = "goals: ratio_to_simple >= 3.3, ratio_single >= 5, open_p99_ms <= 20, lost 0"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to accept requests, with a number of server processes."""

    way: str
    processes: int


VARIANTS: Final = tuple(Variant(way, processes) for processes in (1, 2) for way in ("simple", "fluxpool", "no kafka"))


@dataclass(frozen=True, slots=True)
class Serving:
    """A variant's server that runs."""

    url: str
    pids: Mapping[str, int]
    """Of the programs on the way of a task."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The environment of all runs."""

    bootstrap_servers: str
    broker_pid: int
    folder: Path
    wrk: str
    wrk_script: Path
    key_file: Path

    @property
    def connection(self) -> KafkaConnection:
        """The broker."""
        return KafkaConnection(bootstrap_servers=tuple(self.bootstrap_servers.split(",")))


async def main() -> int:
    """Run everything; return the exit status, 1 when an accepted request was lost."""
    options = _options()
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.stderr.write(
            "accept.py needs wrk: `apt-get install wrk` on Debian and Ubuntu, `brew install wrk` on macOS\n"
        )
        return 2
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="fluxpool-accept-") as name:
        folder = Path(name)
        script = folder / "post.lua"
        key_file = folder / "key"
        key_file.write_text(new_key())
        script.write_text(WRK_SCRIPT % (BODY, key_file.read_text()))
        async with KafkaCluster(folder / "kafka", libs=provide_kafka_libs(), jvm_options=JVM_OPTIONS) as kafka:
            broker_pid = kafka.brokers[0].pid
            assert broker_pid is not None  # it runs
            bench = Bench(kafka.bootstrap_servers, broker_pid, folder, wrk, script, key_file)
            for variant in VARIANTS:
                rows += await _closed_loop(bench, variant, seconds=options.seconds)
            opened = await _open_loop(bench, rate_per_second=options.open_rate, seconds=options.open_seconds)
            rows.append(opened)
    ratios = _ratios(rows, opened)
    sys.stderr.write(GOALS + "\n")
    print_report(ratios=ratios, rows=rows, as_json=options.json)
    return 1 if ratios["lost"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=8, help="length of each closed-loop run")
    parser.add_argument("--open-seconds", type=float, default=60, help="length of the open-loop run")
    parser.add_argument("--open-rate", type=float, default=2000, help="requests a second of the open-loop run")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def _ratios(rows: list[dict[str, Cell]], opened: Mapping[str, Cell]) -> dict[str, Cell]:
    def best(way: str, *, processes: tuple[int, ...] = (1, 2)) -> float:
        return max(
            float(row["requests_per_second"] or 0)
            for row in rows
            if row["way"] == way and row["loop"] == "closed" and row["processes"] in processes
        )

    return {
        "ratio_to_simple": round(best("fluxpool") / best("simple"), 2),
        "ratio_single": round(best("fluxpool", processes=(1,)) / best("simple", processes=(1,)), 2),
        "open_p99_ms": opened["p99_ms"],
        "lost": sum(int(row["lost"] or 0) for row in rows),
    }


async def _closed_loop(bench: Bench, variant: Variant, *, seconds: int) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    topics = await _fresh_topics(bench)
    async with _serving(bench, variant, topics) as serving:
        await _wrk(bench, serving.url, connections=CONNECTIONS[0], seconds=WARM_UP_SECONDS)
        for connections in CONNECTIONS:
            before = await _settled_records(bench, topics)
            await _projected(serving)
            began = ProcessorTime.of(serving.pids)
            measured = await _wrk(bench, serving.url, connections=connections, seconds=seconds)
            await _projected(serving)
            spent = ProcessorTime.of(serving.pids)
            accepted = measured["requests"] - measured["refused"]
            records = None if variant.way == "no kafka" else await _settled_records(bench, topics) - before
            rows.append(
                {
                    "loop": "closed",
                    "way": variant.way,
                    "processes": variant.processes,
                    "connections": connections,
                    "requests_per_second": round(accepted / (measured["microseconds"] / 1e6)),
                    "p50_ms": measured["p50"] / 1000,
                    "p99_ms": measured["p99"] / 1000,
                    "accepted": accepted,
                    "refused": measured["refused"] + measured["broken"],
                    "records": records,
                    "lost": None if records is None else max(0, accepted - records),
                    **spent.per_request(began, requests=accepted),
                }
            )
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


async def _open_loop(bench: Bench, *, rate_per_second: float, seconds: float) -> dict[str, Cell]:
    topics = await _fresh_topics(bench)
    variant = Variant("fluxpool", 1)
    async with _serving(bench, variant, topics) as serving:
        await _wrk(bench, serving.url, connections=CONNECTIONS[0], seconds=WARM_UP_SECONDS)
        before = await _settled_records(bench, topics)
        host, _, port = serving.url.removeprefix("http://").rstrip("/").partition(":")
        authorization = f"Bearer {bench.key_file.read_text()}"
        request = request_bytes(
            "POST", "/v1/generations", host=f"{host}:{port}", authorization=authorization, body=BODY.encode()
        )
        result = await run_open_loop(
            lambda: request,
            host=host,
            port=int(port),
            expected=b"202",
            rate_per_second=rate_per_second,
            seconds=seconds,
            connections=CONNECTIONS[0],
        )
        records = await _settled_records(bench, topics) - before
    return {
        "loop": f"open {rate_per_second:g}/s",
        "way": variant.way,
        "processes": variant.processes,
        "connections": CONNECTIONS[0],
        "requests_per_second": round(result.accepted / seconds),
        "p50_ms": round(result.quantile_milliseconds(0.50), 2),
        "p99_ms": round(result.quantile_milliseconds(0.99), 2),
        "accepted": result.accepted,
        "refused": result.refused + result.unanswered,
        "records": records,
        "lost": max(0, result.accepted - records),
    }


async def _wrk(bench: Bench, url: str, *, connections: int, seconds: int) -> dict[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(bench.wrk, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
        *("--timeout", "10s", "--script", str(bench.wrk_script), f"{url}v1/generations"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found = re.search(r"^RESULT (.*)$", output.decode(), re.MULTILINE)
    if process.returncode or found is None:
        raise RuntimeError(f"wrk failed with status {process.returncode}:\n{output.decode()}")
    measured: dict[str, int] = json.loads(found[1])
    return measured


async def _fresh_topics(bench: Bench) -> TopicNames:
    """New topics for a run, so that nothing of an earlier one is counted or projected."""
    run = os.urandom(4).hex()
    names = ("tasks", "tasks_vip", "results", "progress")
    topics = TopicNames(**{name: f"accept-{run}-{name}" for name in names})
    specs = [spec for spec in topic_specs(topics, replication_factor=1) if spec.name.startswith(f"accept-{run}")]
    await ensure_topics(bench.connection, specs)
    return topics


async def _settled_records(bench: Bench, topics: TopicNames) -> int:
    """Records in the tasks topic, once the open requests of wrk have arrived, too."""
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers, "log_level": 0})
    partitions = (await asyncio.to_thread(admin.list_topics, topics.tasks, 10)).topics[topics.tasks].partitions
    asked = {TopicPartition(topics.tasks, number): OffsetSpec.latest() for number in partitions}
    last = -1
    while True:
        answers = [await asyncio.wrap_future(answer) for answer in admin.list_offsets(asked).values()]
        count = sum(int(answer.offset) for answer in answers)
        if count == last:
            return count
        last = count
        await asyncio.sleep(0.3)


@asynccontextmanager
async def _serving(bench: Bench, variant: Variant, topics: TopicNames) -> AsyncIterator[Serving]:
    """Run a variant's server; yield it once it responds."""
    port = _free_port()
    projector: list[str] = []
    match variant.way:
        case "fluxpool":
            settings = GatewaySettings(
                kafka=bench.connection,
                storage=StorageSettings(url=(bench.folder / "images").as_uri()),
                topics=topics,
                database_file=bench.folder / topics.tasks / "tasks.sqlite",
                listen_port=port,
                processes=variant.processes,
                bootstrap_key_file=bench.key_file,
            )
            command, projector = ["-m", "fluxpool_gateway"], ["-m", "fluxpool_gateway.projector"]
            environment = settings.to_environment()
        case _:
            module = "accept_parts.simple" if variant.way == "simple" else "accept_parts.without_kafka"
            command = ["-m", "uvicorn", "--app-dir", str(FOLDER), f"{module}:app", "--port", str(port)]
            command += ["--workers", str(variant.processes), "--no-access-log", "--log-level", "warning"]
            environment = {"ACCEPT_TOPIC": topics.tasks, "ACCEPT_BOOTSTRAP_SERVERS": bench.bootstrap_servers}
    log = (bench.folder / "server.log").open("ab")
    with log:
        programs = {
            program: await asyncio.create_subprocess_exec(
                sys.executable, *arguments, env={**os.environ, **environment}, stdout=log, stderr=log
            )
            for program, arguments in (("server", command), ("projector", projector))
            if arguments
        }
    url = f"http://127.0.0.1:{port}/"
    try:
        path = "readyz" if variant.way == "fluxpool" else "healthz"
        await _answers(url + path, programs["server"], bench.folder)
        pids = {program: started.pid for program, started in programs.items()}
        yield Serving(url, pids if variant.way == "no kafka" else {**pids, "broker": bench.broker_pid})
    finally:
        for started in programs.values():
            if started.returncode is None:
                started.terminate()
            await started.wait()


async def _projected(serving: Serving) -> None:
    """Return when the projector has everything, so that its processor time is that of the requests before."""
    since = time.monotonic()
    while "projector" in serving.pids:
        with urllib.request.urlopen(serving.url + "metrics", timeout=10) as answer:  # noqa: ASYNC210, S310 - our own
            values = dict(re.findall(r"^fluxpool_projection_(\w+) (\S+)$", answer.read().decode(), re.MULTILINE))
        beat_since = float(values["heartbeat_age_seconds"]) < time.monotonic() - since
        if beat_since and float(values.get("lag_records", 1)) == 0:
            return
        await asyncio.sleep(0.5)


async def _answers(url: str, process: asyncio.subprocess.Process, folder: Path) -> None:
    def asked() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own server on loopback
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    async with asyncio.timeout(START_DEADLINE_SECONDS):
        while not await asyncio.to_thread(asked):
            if process.returncode is not None:
                raise RuntimeError(f"the server ended:\n{(folder / 'server.log').read_text()[-4000:]}")
            await asyncio.sleep(0.1)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: Any = probe.getsockname()[1]
        return int(port)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
