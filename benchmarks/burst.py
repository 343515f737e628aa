"""A burst of tasks through the gateway to their results: one a request, 250 a request, and by a client that is killed.

Broker, gateway with API keys and limits, workers and store are real; the engine stands in for the model. The ways run
one after the other, and each ends when all its tasks have results. The first burst comes before the workers, as to a
pool with zero workers; in the others they share the cores with gateway, broker and client. Then the records are
counted: a task that was accepted and has no result or no image is lost; one with two records or two results is doubled.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from report import Cell, print_report, quiet_logs

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.identity import new_key
from fluxpool_gateway.settings import TenantLimits
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, running_gateway
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, worker_bench

JVM_OPTIONS: Final = ("-Xmx1g", "-XX:+UseSerialGC")
SENDER: Final = Path(__file__).parent / "burst_parts" / "sender.py"
IN_ONE_REQUEST: Final = 250
KILLED_AT_SHARE: Final = 0.5
POLL_SECONDS: Final = 0.5
GOAL_SECONDS: Final = 5
GOALS: Final = f"goals: accept_seconds <= {GOAL_SECONDS} (seconds_to_goal <= 1) and p99_ms <= 100, lost 0, doubled 0"


@dataclass(frozen=True, slots=True)
class Bench:
    """What all ways share."""

    workers: WorkerBench
    gateway: GatewayProcess
    key: str
    options: argparse.Namespace


async def main() -> int:
    """Run everything; return the exit status, 1 when a task was lost or doubled."""
    options = _options()
    quiet_logs("aiokafka")
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="fluxpool-burst-") as name:
        folder = Path(name)
        async with (
            KafkaCluster(folder / "kafka", libs=provide_kafka_libs(), jvm_options=JVM_OPTIONS) as kafka,
            worker_bench(
                kafka.bootstrap_servers, folder, model="none", stand_in=True, partitions=options.workers
            ) as workers,
        ):
            (folder / "key").write_text(new_key())
            settings = gateway_settings(
                kafka.bootstrap_servers,
                folder / "gateway",
                workers.topics,
                processes=options.processes,
                bootstrap_key_file=folder / "key",
                storage=StorageSettings(url=workers.images.as_uri()),
                # Both limits are checked, and never reached.
                tenant_limits={"*": TenantLimits(submit="1000000/minute", outstanding=30_000)},
            )
            with running_gateway(settings) as gateway:
                bench = Bench(workers, gateway, (folder / "key").read_text(), options)
                rows.append(await _measure(bench, "one a request, no worker yet", in_one_request=1, start_workers=True))
                rows.append(await _measure(bench, "one a request", in_one_request=1))
                rows.append(await _measure(bench, f"{IN_ONE_REQUEST} a request", in_one_request=IN_ONE_REQUEST))
                rows.append(await _measure(bench, "one a request, killed", in_one_request=1, is_killed=True))
    sys.stderr.write(GOALS + "\n")
    broken = {name: sum(int(row[name] or 0) for row in rows) for name in ("lost", "doubled")}
    seconds = [float(row["accept_seconds"] or 0) for row in rows]
    ratios = {
        "seconds_to_goal": round(seconds[0] / GOAL_SECONDS, 2),
        "seconds_one_to_many": round(seconds[1] / seconds[2], 2),
    }
    print_report(ratios={**ratios, **broken}, rows=rows, as_json=options.json)
    return 1 if any(broken.values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=5000, help="of each burst")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="server processes of the gateway")
    parser.add_argument("--finish-seconds", type=float, default=600, help="longest wait for the results of a burst")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


async def _measure(
    bench: Bench, way: str, *, in_one_request: int, is_killed: bool = False, start_workers: bool = False
) -> dict[str, Cell]:
    burst = {
        "url": bench.gateway.url,
        "name": way.replace(" ", "-").replace(",", ""),
        "tasks": bench.options.tasks,
        "in_one_request": in_one_request,
        "connections": bench.options.connections if in_one_request == 1 else 4,
    }
    before = len(await bench.workers.records(bench.workers.topics.tasks))
    if is_killed:
        await _send_and_kill(bench, burst, before=before)
    sent = await _send(bench, burst)
    began = time.monotonic()
    if start_workers:
        for _ in range(bench.options.workers):
            await bench.workers.start_ready()
    counted = await _count(bench, set(sent["accepted"]))
    milliseconds = sorted(sent["milliseconds"])
    return {
        "way": way,
        "accepted": len(sent["accepted"]),
        "accept_seconds": round(sent["seconds"], 2),
        "p50_ms": round(statistics.median(milliseconds), 1),
        "p99_ms": round(milliseconds[min(len(milliseconds) - 1, int(0.99 * len(milliseconds)))], 1),
        "repeats": sent["repeats"],
        "result_seconds": round(time.monotonic() - began + sent["seconds"], 1),
        **counted,
    }


async def _start(bench: Bench, burst: dict[str, Any]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(SENDER),
        json.dumps(burst),
        env={**os.environ, "BURST_KEY": bench.key},
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )


async def _send(bench: Bench, burst: dict[str, Any]) -> dict[str, Any]:
    sender = await _start(bench, burst)
    output, _ = await sender.communicate()
    if sender.returncode:
        raise RuntimeError(f"the sender ended with status {sender.returncode}")
    document: dict[str, Any] = json.loads(output)
    return document


async def _send_and_kill(bench: Bench, burst: dict[str, Any], *, before: int) -> None:
    """Kill the sender once a share of its tasks is in Kafka."""
    sender = await _start(bench, burst)

    async def are_there() -> bool:
        records = await bench.workers.records(bench.workers.topics.tasks)
        return len(records) >= before + int(KILLED_AT_SHARE * bench.options.tasks)

    await wait_until(are_there, deadline_seconds=60, what="the first share of the burst")
    sender.kill()
    await sender.communicate()


async def _count(bench: Bench, accepted: set[str]) -> dict[str, Cell]:
    """Lost and doubled tasks, once all have results or the time is over."""
    deadline = time.monotonic() + bench.options.finish_seconds
    while True:
        events: defaultdict[str, set[str]] = defaultdict(set)
        statuses: dict[str, str] = {}
        for record in await bench.workers.records(bench.workers.topics.results):
            result = json.loads(record.value or b"{}")
            events[result["request_id"]].add(dict(record.headers)["ce_id"].decode())
            statuses[result["request_id"]] = result["status"]
        if accepted <= events.keys() or time.monotonic() > deadline:
            break
        await asyncio.sleep(POLL_SECONDS)
    tasks = Counter(
        json.loads(record.value or b"{}")["request_id"]
        for record in await bench.workers.records(bench.workers.topics.tasks)
    )
    images = Counter(path.parent.name for path in bench.workers.stored_images())
    return {
        "lost": sum(not (tasks[name] and statuses.get(name) == "success" and images[name]) for name in accepted),
        "doubled": sum(tasks[name] > 1 or len(events[name]) > 1 or images[name] > 1 for name in accepted),
    }


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
