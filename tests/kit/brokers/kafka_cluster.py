"""A real Apache Kafka for tests: one or three brokers with configurable listeners, users and properties.

Uses the product's broker, several times and with more settings. Creates no topics.
"""

import asyncio
import base64
import uuid
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import structlog

from fluxpool_cli.local.kafka.broker import (
    CONTROLLER_LISTENER,
    LOG_FOLDER,
    PLAIN_LISTENER,
    KafkaBroker,
    KafkaStartError,
    wait_ready,
)
from fluxpool_cli.local.kafka.local_kafka import ClusterLayout
from fluxpool_cli.local.loopback import HOST
from kit.brokers.kafka_classes import quick_start
from kit.brokers.kafka_settings import (
    OFFSETS_PARTITIONS,
    ListenerSpec,
    ScramUser,
    broker_properties,
    check_extra_properties,
    check_listeners,
    group_on_partition,
    render_properties,
)
from kit.ports import own_port
from kit.programs.pausable_process import PausableProcess
from kit.waiting import PATIENCE

_log = structlog.get_logger(__name__)

_bootstrap_records: dict[tuple[str, ...], bytes] = {}
"""What Kafka's tool wrote for these arguments: the first records of the metadata, the same for every new cluster."""


class ClusterBroker(PausableProcess, KafkaBroker):
    """A handle on one broker; made by `KafkaCluster`."""


class KafkaCluster:
    """One or three brokers with a data folder of their own; `async with` starts, waits until ready, and stops.

    Bound to no event loop: it may be started in one loop and stopped in another. See `KafkaBroker` for the one
    rule about threads.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        libs: Path,
        brokers: Literal[1, 3] = 1,
        listeners: Sequence[ListenerSpec] = (),
        scram_users: Sequence[ScramUser] = (),
        extra_properties: Mapping[str, str] | None = None,
        jvm_options: Sequence[str] = (),
    ) -> None:
        """Check the settings; touches nothing yet.

        `libs` is a folder of Kafka jars (`provide_kafka_libs`). `scram_users` take effect when the folder is formatted,
        all else at every start. Without `jvm_options` the brokers start as quickly as they can. Raises `ValueError`
        naming the setting that cannot be.
        """
        if brokers not in (1, 3):
            raise ValueError(f"brokers={brokers}: a local Kafka has 1 or 3 brokers")
        check_listeners(listeners, brokers=brokers)
        check_extra_properties(extra_properties or {})
        self.data_dir = data_dir.resolve()
        self._libs = libs
        self._broker_count = brokers
        self._listeners = tuple(listeners)
        self._scram_users = tuple(scram_users)
        self._extra_properties = dict(extra_properties or {})
        self._jvm_options = tuple(jvm_options) or quick_start(libs)
        self._brokers: tuple[ClusterBroker, ...] = ()

    @property
    def brokers(self) -> tuple[ClusterBroker, ...]:
        """The brokers, by node id from 1 on; empty before the first `start`."""
        return self._brokers

    @property
    def bootstrap_servers(self) -> str:
        """`host:port[,host:port...]` of the plain listener; the same after every restart."""
        return self.bootstrap_servers_of(PLAIN_LISTENER)

    def bootstrap_servers_of(self, listener: str) -> str:
        """Return the addresses of a listener; raises `KafkaStartError` before `start` or when there is none."""
        if not self._brokers:
            raise KafkaStartError("the Kafka has no addresses before its first start")
        try:
            return ",".join(f"{HOST}:{broker.ports[listener]}" for broker in self._brokers)
        except KeyError:
            known = ", ".join(sorted(self._brokers[0].ports.keys() - {CONTROLLER_LISTENER}))
            raise KafkaStartError(f"there is no listener {listener!r}; known: {known}") from None

    async def start(self, *, deadline_seconds: float = 60) -> None:
        """Format the data folder if it is new, start every broker that does not run, return once all listen.

        Raises `KafkaStartError` when the folder does not fit, or with the end of the log when one dies or is too
        slow; then none of the brokers is left running.
        """
        deadline_seconds *= PATIENCE
        if not self._brokers:
            await self._prepare(deadline_seconds=deadline_seconds)
        try:
            await _together(broker.start(deadline_seconds=deadline_seconds) for broker in self._brokers)
        except BaseException:
            await self._kill_all()
            raise
        _log.info("kafka_started", bootstrap_servers=self.bootstrap_servers, data_dir=str(self.data_dir))

    async def wait_ready(self, *, deadline_seconds: float = 60) -> None:
        """Return once exactly the running brokers are registered and every group coordinator answers.

        The first call makes `__consumer_offsets`. Raises `KafkaStartError` when a broker dies meanwhile, when the
        deadline passes (with what was missing), or when no broker runs.
        """
        running = [broker for broker in self._brokers if broker.pid is not None]
        if not running:
            raise KafkaStartError("no broker runs: start the Kafka before waiting for it")
        groups = [group_on_partition(number) for number in range(OFFSETS_PARTITIONS)]
        await wait_ready(running, groups=groups, deadline_seconds=PATIENCE * deadline_seconds)

    async def stop(self, *, grace_seconds: float = 10) -> None:
        """Stop all brokers cleanly; those that still run after `grace_seconds` are killed."""
        await _together(broker.stop(grace_seconds=PATIENCE * grace_seconds) for broker in self._brokers)

    async def __aenter__(self) -> Self:
        """Start and wait until ready."""
        try:
            await self.start()
            await self.wait_ready()
        except BaseException:
            await self._kill_all()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def _kill_all(self) -> None:
        for broker in self._brokers:
            await broker.kill()

    async def _prepare(self, *, deadline_seconds: float) -> None:
        listeners = [spec.name for spec in self._listeners]
        layout = ClusterLayout.of(self.data_dir, brokers=self._broker_count, listeners=listeners, choose_port=own_port)
        layout.save(self.data_dir)
        brokers = tuple(
            ClusterBroker(
                self.data_dir / f"broker-{node_id}",
                libs=self._libs,
                ports=ports,
                log_path=self.data_dir / "logs" / f"broker-{node_id}.log",
                node_id=node_id,
                jvm_options=self._jvm_options,
            )
            for node_id, ports in sorted(layout.ports.items())
        )
        for broker in brokers:
            properties = broker_properties(
                node_id=broker.node_id,
                ports=layout.ports,
                listeners=self._listeners,
                extra_properties=self._extra_properties,
            )
            broker.write_settings(render_properties(properties))
        if not layout.formatted:
            users = [f"--add-scram={user.as_argument()}" for user in self._scram_users]
            try:
                async with asyncio.timeout(deadline_seconds):
                    await _together(self._format(broker, layout.cluster_id, *users) for broker in brokers)
            except TimeoutError:
                raise KafkaStartError(f"formatting {self.data_dir} took more than {deadline_seconds:.0f} s") from None
            layout.formatted = True
            layout.save(self.data_dir)
        self._brokers = brokers

    async def _format(self, broker: ClusterBroker, cluster_id: str, *arguments: str) -> None:
        """Format by Kafka's tool, and the next time as it does, without the 1.4 s of CPU time of its JVM."""
        folder = self.data_dir / f"broker-{broker.node_id}" / LOG_FOLDER
        records = folder / "bootstrap.checkpoint"
        if folder.exists() or arguments not in _bootstrap_records:
            await broker.format(cluster_id, *arguments)
            _bootstrap_records[arguments] = records.read_bytes()
            return
        folder.mkdir()
        records.write_bytes(_bootstrap_records[arguments])
        directory_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        ids = {"cluster.id": cluster_id, "node.id": str(broker.node_id), "directory.id": directory_id}
        (folder / "meta.properties").write_text(render_properties({"version": "1", **ids}))


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all concurrently; the first failure ends the others and is raised unchanged."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
