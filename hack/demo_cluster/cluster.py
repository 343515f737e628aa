"""Start and stop the components of the demo: control plane, node, Kafka, object store, tiny checkpoint.

Knows nothing of pools and tasks.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo_cluster.pools import BUCKET, NAMESPACE, TINY_MODEL
from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_cli.local.kafka.local_kafka import LocalKafka
from fluxpool_cli.model import tiny_model_command
from fluxpool_transport.process.parent_death import bound_command
from kit.cluster.control_plane import ControlPlane
from kit.cluster.control_plane_binaries import control_plane_binaries
from kit.cluster.kubernetes_node import NodeSpec
from kit.cluster.manifests import wait_exists
from kit.cluster.node_bench import Bench
from kit.process_node import ProcessNode
from kit.process_node.container import check_isolation
from kit.scaling.operator_bench import GPU, WORKER_IMAGE, OperatorBench, operator_image, worker_image
from kit.stores.s3 import running_s3

_NODE: Final = "demo-node"
_OPERATOR_IMAGE: Final = "fluxpool-operator:0.1.0"
_START_SECONDS: Final = 180.0
"""For each component; an idle machine needs seconds, but all start at once, and the machine may be busy."""


class DemoError(Exception):
    """The demo cannot continue; the message has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCluster:
    """The running components: a control plane with one node and an empty namespace, Kafka and a bucket."""

    bench: OperatorBench
    binaries: Path
    """Folder with kubectl and helm."""
    models: Path
    """A folder of the node with the tiny checkpoint, named `TINY_MODEL`."""
    folder: Path


@asynccontextmanager
async def running_cluster(folder: Path, *, gpus: int, report: Callable[[str], None]) -> AsyncIterator[DemoCluster]:
    """Start all components below `folder` and always stop them afterwards; `gpus` is the reported capacity of the node.

    Raises the components' errors: `BinariesMissingError`, `IsolationUnavailableError` and `KafkaJarsError` before
    anything is started.
    """
    binaries = control_plane_binaries()
    check_isolation()
    libs = await asyncio.to_thread(provide_kafka_libs)
    async with AsyncExitStack() as parts:
        kafka = LocalKafka(folder / "kafka", libs=libs)
        control_plane = ControlPlane(folder / "control-plane", binaries=binaries)
        store = parts.enter_context(running_s3())
        store.create_bucket(BUCKET)
        models = folder / "models"
        models.mkdir()
        report("starting etcd, kube-apiserver, kube-controller-manager, kube-scheduler and Apache Kafka")
        parts.push_async_callback(control_plane.stop)
        parts.push_async_callback(kafka.stop)
        try:
            async with asyncio.TaskGroup() as starting:
                starting.create_task(control_plane.start(deadline_seconds=_START_SECONDS))
                starting.create_task(kafka.start(deadline_seconds=_START_SECONDS))
                starting.create_task(_write_model(models / TINY_MODEL))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        report(f"Kubernetes is ready at {control_plane.server}, Kafka at {kafka.bootstrap_servers}")
        api = await parts.enter_async_context(control_plane.api())
        await api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        await wait_exists(api, f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default")
        await wait_exists(api, f"/api/v1/namespaces/{NAMESPACE}/configmaps/kube-root-ca.crt")
        node = ProcessNode(
            control_plane.login_as(f"system:node:{_NODE}", group="system:nodes"),
            NodeSpec(name=_NODE, capacity={GPU: str(gpus)}),
            images={_OPERATOR_IMAGE: operator_image(forked=False), WORKER_IMAGE: worker_image(stand_in=False)},
            data_dir=folder / "node",
        )
        await parts.enter_async_context(node)
        report(f"{_NODE} has joined with {gpus} GPUs that it only claims to have; its pods are processes")
        bench = OperatorBench(
            bench=Bench(control_plane, api, NAMESPACE, node, folder),
            bootstrap_servers=kafka.bootstrap_servers,
            s3=store,
        )
        yield DemoCluster(bench=bench, binaries=binaries, models=models, folder=folder)


async def _write_model(folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *bound_command(tiny_model_command(folder)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        raise DemoError(f"the tiny checkpoint was not written in {_START_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise DemoError(f"the tiny checkpoint was not written:\n{output.decode(errors='replace').strip()}")
