"""Fixtures of the cluster tests: one real control plane for the run, a client and a namespace for each test.

Without the programs of the control plane the tests are skipped, because building them takes minutes; with
TEST_REQUIRE_CLUSTER=1 they fail instead.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from kit.brokers.kafka import unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.cluster.control_plane import ControlPlane, running_control_plane
from kit.cluster.control_plane_binaries import BinariesMissingError, control_plane_binaries
from kit.cluster.kubernetes_api import ApiError, KubernetesApi
from kit.cluster.kubernetes_node import NodeSpec
from kit.cluster.manifests import wait_exists
from kit.cluster.node_bench import Bench, python_image
from kit.process_node import IsolationUnavailableError, NodePolicy, ProcessNode
from kit.process_node.container import check_isolation
from kit.scaling.operator_bench import (
    GPU,
    WORKER_IMAGE,
    OperatorBench,
    apply_definitions,
    operator_image,
    worker_image,
)
from kit.scaling.pool_tasks import BUCKET
from kit.stores.s3 import S3Service, running_s3


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The folder with etcd, the Kubernetes programs and helm."""
    try:
        return control_plane_binaries()
    except BinariesMissingError as error:
        if os.environ.get("TEST_REQUIRE_CLUSTER") == "1":
            pytest.fail(f"TEST_REQUIRE_CLUSTER=1, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane of the whole run: do not stop it, and use unique namespaces and nodes."""
    with running_control_plane(tmp_path_factory.mktemp("control-plane"), binaries=binaries) as running:
        yield running


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[KubernetesApi]:
    """The admin's client."""
    async with control_plane.api() as client:
        yield client


@asynccontextmanager
async def _own_namespace(api: KubernetesApi) -> AsyncIterator[str]:
    name = unique_name("t")
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    await wait_exists(api, f"/api/v1/namespaces/{name}/serviceaccounts/default")
    await wait_exists(api, f"/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt")
    yield name
    # A test may have deleted it itself.
    with contextlib.suppress(ApiError):
        await api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
async def namespace(api: KubernetesApi) -> AsyncIterator[str]:
    """A namespace with a default service account; it is deleted at the end without waiting."""
    async with _own_namespace(api) as name:
        yield name


@pytest.fixture(scope="session")
def isolation() -> None:
    """Skip where this machine does not permit containers with separate file systems."""
    try:
        check_isolation()
    except IsolationUnavailableError as error:
        if os.environ.get("TEST_REQUIRE_CLUSTER") == "1":
            pytest.fail(f"TEST_REQUIRE_CLUSTER=1, but {error}")
        pytest.skip(str(error))


def _bench(
    control_plane: ControlPlane,
    api: KubernetesApi,
    *,
    namespace: str,
    folder: Path,
    name: str | None = None,
    **arguments: Any,
) -> Bench:
    name = name or unique_name("node")
    spec = arguments.pop("spec", None) or NodeSpec(name=name, capacity={"nvidia.com/gpu": "2"})
    login = control_plane.login_as(f"system:node:{name}", group="system:nodes")
    arguments.setdefault("images", {"python": python_image(FROM_IMAGE="yes")})
    arguments.setdefault("policy", NodePolicy(retry_seconds=0.2, restart_backoff_seconds=0.5))
    return Bench(control_plane, api, namespace, ProcessNode(login, spec, data_dir=folder / name, **arguments), folder)


@pytest.fixture
def make_bench(
    control_plane: ControlPlane,
    api: KubernetesApi,
    namespace: str,
    isolation: None,  # noqa: ARG001 - required to run anything
    tmp_path: Path,
) -> Callable[..., Bench]:
    """Make a bench whose process node is not started yet; the same node name uses the same folder."""

    def make(name: str | None = None, **arguments: Any) -> Bench:
        return _bench(control_plane, api, namespace=namespace, folder=tmp_path, name=name, **arguments)

    return make


@pytest.fixture
async def bench(make_bench: Callable[..., Bench]) -> AsyncIterator[Bench]:
    """A bench whose node runs; the Node object is removed afterwards."""
    made = make_bench()
    async with made.node:
        yield made
    await made.api.delete(f"/api/v1/nodes/{made.node.name}")


@pytest.fixture(scope="session")
def object_store() -> Iterator[S3Service]:
    """An S3 service with a bucket for the images of all pools."""
    with running_s3() as service:
        service.create_bucket(BUCKET)
        yield service


@pytest.fixture(scope="module")
def shared_operator(
    control_plane: ControlPlane,
    isolation: None,  # noqa: ARG001 - required to run anything
    kafka: KafkaCluster,
    object_store: S3Service,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    """An operator that watches all namespaces, for modules whose tests all use it.

    Not for tests of its installation, restarts or permissions. Its node has a separate event loop, as that of a test
    ends with the test.
    """

    @asynccontextmanager
    async def running() -> AsyncIterator[Bench]:
        async with control_plane.api() as api, _own_namespace(api) as namespace:
            folder = tmp_path_factory.mktemp("operator")
            images = {"fluxpool-operator:0.1.0": operator_image()}
            bench = _bench(control_plane, api, namespace=namespace, folder=folder, images=images)
            await apply_definitions(control_plane, api)
            async with bench.node:
                release = OperatorBench(bench=bench, bootstrap_servers=kafka.bootstrap_servers, s3=object_store)
                await release.install(watch__clusterWide=True, hostPathAllowed=True, secretIntervalSeconds=1)
                yield bench
                await release.uninstall()
            await api.delete(f"/api/v1/nodes/{bench.node.name}")

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as bench:
        yield bench


@pytest.fixture
def operator(request: pytest.FixtureRequest) -> Bench | None:
    """The shared operator, in modules that use it."""
    return request.getfixturevalue("shared_operator") if "shared_operator" in request.fixturenames else None


@pytest.fixture
async def fluxpool(
    make_bench: Callable[..., Bench], kafka: KafkaCluster, object_store: S3Service, operator: Bench | None
) -> AsyncIterator[OperatorBench]:
    """The CRD and a node with eight GPUs; no operator is installed yet, except a shared one."""
    name = unique_name("node")
    bench = make_bench(
        name,
        spec=NodeSpec(name=name, capacity={GPU: "8"}),
        images={"fluxpool-operator:0.1.0": operator_image(), WORKER_IMAGE: worker_image()},
    )
    if operator is None:
        await apply_definitions(bench.control_plane, bench.api)
    async with bench.node:
        made = OperatorBench(bench=bench, bootstrap_servers=kafka.bootstrap_servers, s3=object_store, operator=operator)
        await made.create_bucket_secret()
        yield made
        # Before the node is deleted, so that no pod of this test remains on a missing node.
        await made.clean_up()
    await bench.api.delete(f"/api/v1/nodes/{bench.node.name}")
