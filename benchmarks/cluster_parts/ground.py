"""The environment of the operator's benchmarks: a real broker and a real control plane on this machine.

Owns their start, folder and end. Knows nothing of pools.
"""

import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from report import quiet_logs

from fluxpool_cli.local.kafka.broker import DEFAULT_JVM_OPTIONS
from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from kit.brokers.kafka_cluster import KafkaCluster
from kit.cluster.control_plane import ControlPlane
from kit.cluster.control_plane_binaries import BinariesMissingError, control_plane_binaries


@dataclass(frozen=True, slots=True)
class ClusterGround:
    """The environment of a benchmark of the operator."""

    folder: Path
    bootstrap_servers: str
    control_plane: ControlPlane


async def on_cluster_ground(
    name: str,
    measure: Callable[[ClusterGround], Awaitable[int]],
    *,
    jvm_options: Sequence[str] = DEFAULT_JVM_OPTIONS,
) -> int:
    """Measure there; return the exit status: 1, with the remedy printed, when the control plane is not built."""
    quiet_logs("aiokafka")
    try:
        async with _cluster_ground(name, jvm_options) as ground:
            return await measure(ground)
    except BinariesMissingError as error:
        sys.stderr.write(f"{error}\n")
        return 1


@asynccontextmanager
async def _cluster_ground(name: str, jvm_options: Sequence[str]) -> AsyncIterator[ClusterGround]:
    binaries = control_plane_binaries()
    with tempfile.TemporaryDirectory(prefix=f"fluxpool-{name}-") as made:
        folder = Path(made)
        async with (
            KafkaCluster(folder / "kafka", libs=provide_kafka_libs(), jvm_options=jvm_options) as kafka,
            ControlPlane(folder / "control-plane", binaries=binaries) as control_plane,
        ):
            yield ClusterGround(folder, kafka.bootstrap_servers, control_plane)
