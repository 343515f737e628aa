"""The cost of one operator with many pools: real groups on a real broker, a real API server, fake nodes and pods.

Every pool has its own topic and group with tasks, so each reads a real backlog. Nothing changes during the
measurement, so any write of the operator is waste. In the same run, the backlog of all groups is read as the operator
reads it, and by a client that requests one group after the other. Broker, control plane, fake nodes and operator share
this machine's cores; only the operator's processor time and memory are counted.
"""

import argparse
import asyncio
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from cluster_parts.ground import ClusterGround, on_cluster_ground
from cluster_parts.operator_process import OPERATOR_USER, Operator, running_operator
from cluster_parts.scale_world import NAMESPACE, Testbed, build_testbed
from report import Cell, print_report

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneTarget
from fluxpool_transport.lag.lag_reader import PartitionLag
from kit.cluster.control_plane import ControlPlane

JVM_OPTIONS: Final = ("-Xmx2g", "-XX:+UseSerialGC")
READINGS: Final = 3
SAMPLE_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 45.0
MUTATING: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
GOALS: Final = (
    "goals: cycle_p95_s <= 2, writes_at_rest 0, rss_mb <= 300, cpu_cores <= 0.5, rss_slope_mb_per_10_min <= 1 "
    "(of the last third) for 1,000 pools and 10,000 pods in 30 minutes"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The operator's process at one time."""

    at_seconds: float
    rss_mb: float
    cpu_seconds: float


async def main() -> int:
    """Build, measure, print; return the exit status, 1 when pools did not become ready."""
    options = _options()
    return await on_cluster_ground("scale", lambda ground: _scale(options, ground), jvm_options=JVM_OPTIONS)


async def _scale(options: argparse.Namespace, ground: ClusterGround) -> int:
    row = await _measure(options, ground)
    sys.stderr.write(GOALS + "\n")
    ratios = {"read_one_by_one_to_ours": row.pop("read_one_by_one_to_ours")}
    print_report(
        ratios={**ratios, **row}, rows=[{"pools": options.pools, "pods": options.pods, **row}], as_json=options.json
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pools", type=int, default=20)
    parser.add_argument("--pods", type=int, default=200, help="of all pools together")
    parser.add_argument("--minutes", type=float, default=1.0, help="of measurement, after everything has settled")
    parser.add_argument("--partitions", type=int, default=6, help="of each pool's topic")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


async def _measure(options: argparse.Namespace, ground: ClusterGround) -> dict[str, Cell]:
    began = time.monotonic()
    async with build_testbed(
        ground.control_plane,
        ground.bootstrap_servers,
        pools=options.pools,
        pods=options.pods,
        partitions=options.partitions,
    ) as testbed:
        _report(began, f"{options.pools} pools with {options.partitions} partitions each exist")
        with running_operator(ground.control_plane, ground.folder, namespace=NAMESPACE) as operator:
            await testbed.wait_settled()
            _report(began, f"{options.pods} pods are ready")
            await asyncio.sleep(SETTLE_SECONDS)
            return await _watch(options, testbed, ground.control_plane, operator, began)


async def _watch(
    options: argparse.Namespace,
    testbed: Testbed,
    control_plane: ControlPlane,
    operator: Operator,
    began: float,
) -> dict[str, Cell]:
    """Sample the operator while nothing changes."""
    audited = AuditTail(control_plane.audit_log_path)
    before = await _cycles(operator.metrics_url)
    samples = [_sample(operator.process)]
    ends_at = time.monotonic() + options.minutes * 60
    while time.monotonic() < ends_at:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(_sample(operator.process))
    after = await _cycles(operator.metrics_url)
    writes = audited.mutations(OPERATOR_USER)
    _report(began, "measured; reading all backlogs in two ways")
    ours, one_by_one = await _read_both(testbed)
    cycles = after[float("inf")] - before[float("inf")]
    seconds = samples[-1].at_seconds - samples[0].at_seconds
    return {
        "cycle_p95_s": round(_quantile(before, after, 0.95), 3),
        "cycle_p50_s": round(_quantile(before, after, 0.5), 3),
        "cycles_per_pool_per_minute": round(cycles / options.pools / seconds * 60, 2),
        "writes_at_rest": len(writes),
        "rss_mb": round(max(sample.rss_mb for sample in samples), 1),
        "rss_slope_mb_per_10_min": round(_slope(samples[-len(samples) // 3 :]) * 600, 2),
        "cpu_cores": round((samples[-1].cpu_seconds - samples[0].cpu_seconds) / seconds, 3),
        "minutes": round(seconds / 60, 1),
        "read_all_s": round(ours, 3),
        "read_all_one_by_one_s": round(one_by_one, 3),
        "read_one_by_one_to_ours": round(one_by_one / ours, 1),
    }


# The operator's process


def _sample(process: psutil.Process) -> Sample:
    times = process.cpu_times()
    return Sample(time.monotonic(), process.memory_info().rss / 2**20, times.user + times.system)


def _slope(samples: Sequence[Sample]) -> float:
    """MiB per second, by least squares."""
    if len(samples) < 3:
        return 0.0
    fit = statistics.linear_regression([item.at_seconds for item in samples], [item.rss_mb for item in samples])
    return fit.slope


async def _cycles(metrics_url: str) -> dict[float, float]:
    """The histogram of observe -> plan cycles: cumulative counts by seconds."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(metrics_url)).raise_for_status().text
    found = re.findall(r'fluxpool_pool_cycle_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)', text)
    return {float(bound): float(count) for bound, count in found}


def _quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Interpolated within its bucket, as Prometheus' histogram_quantile does."""
    counts = {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}
    wanted = counts[float("inf")] * share
    lower, below = 0.0, 0.0
    for bound, count in counts.items():
        if count >= wanted:
            if bound == float("inf") or count == below:
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


class AuditTail:
    """New audit events of the API server; its log rotates by size, and rotated files are read in time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {file: file.stat().st_ino for file in self._files()}
        self._offset = path.stat().st_size
        self._inode = path.stat().st_ino

    def mutations(self, user: str) -> list[str]:
        """Mutating requests of a user, as `verb resource`."""
        known = set(self._known.values())
        lines: list[str] = []
        for file in self._files():
            inode = file.stat().st_ino
            if inode == self._inode:
                with file.open() as log:
                    log.seek(self._offset)
                    lines += log
            elif inode not in known:
                lines += file.read_text().splitlines()
        mine = (line for line in lines if f'"username":"{user}"' in line)
        verbs = (re.search(r'"verb":"([a-z]+)"', line) for line in mine)
        return [found[1] for found in verbs if found is not None and found[1] in MUTATING]

    def _files(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}*{self._path.suffix}"))


# The same backlog read in two ways


async def _read_both(testbed: Testbed) -> tuple[float, float]:
    """Median seconds for the backlog of all pools: as the operator reads it, and one group after the other."""
    connection = KafkaConnection(bootstrap_servers=(testbed.bootstrap_servers,))
    targets = [LaneTarget(name="standard", topic=topic, consumer_group=topic) for topic in testbed.topics]
    ours, theirs = [], []
    async with BacklogHub(deadline_seconds=60.0) as hub:
        admin = AIOKafkaAdminClient(bootstrap_servers=testbed.bootstrap_servers)
        consumer = AIOKafkaConsumer(bootstrap_servers=testbed.bootstrap_servers, group_id=None)
        await admin.start()
        await consumer.start()
        try:
            # The first reading of each connects and fetches metadata.
            for _ in range(READINGS + 1):
                ours.append(await _read_ours(hub, connection, targets, testbed.tasks_per_pool))
                theirs.append(await _read_one_by_one(admin, consumer, testbed.topics, testbed.tasks_per_pool))
        finally:
            await consumer.stop()
            await admin.close()
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


async def _read_ours(hub: BacklogHub, connection: KafkaConnection, targets: Sequence[LaneTarget], tasks: int) -> float:
    began = time.perf_counter()
    readings = await asyncio.gather(*(hub.read(connection, [target]) for target in targets))
    seconds = time.perf_counter() - began
    wrong = [reading for (reading,) in readings if not reading.is_complete]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(targets)} backlogs were not read, such as {wrong[0]}")
    waiting = {
        sum(item.pending_records for item in reading.partitions if isinstance(item, PartitionLag))
        for (reading,) in readings
    }
    if waiting != {tasks}:
        raise RuntimeError(f"every group has {tasks} pending tasks, but {waiting} were read")
    return seconds


async def _read_one_by_one(
    admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, topics: Sequence[str], tasks: int
) -> float:
    began = time.perf_counter()
    for topic in topics:
        committed = await admin.list_consumer_group_offsets(topic)
        ends = await consumer.end_offsets(list(committed))
        lag = sum(ends[partition] - found.offset for partition, found in committed.items())
        if lag != tasks:
            raise RuntimeError(f"{topic} has {tasks} pending tasks, but {lag} were read")
    return time.perf_counter() - began


def _report(began: float, what: str) -> None:
    sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {what}\n")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
