"""A real Apache Kafka on this machine, in KRaft's combined mode, for local mode and the tests.

Owns the data folder (`cluster.json`, `broker-<n>/`, `logs/`), its one-time formatting, and the answer to "can it
serve?". Processes are `kafka_broker`'s business, settings `kafka_settings`'. Creates no topics.
"""

import asyncio
import shutil
import subprocess
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError as ClientError
from aiokafka.structs import TopicPartition

from fluxpool_cli.local.kafka.broker import (
    DEFAULT_JVM_OPTIONS,
    KafkaBroker,
    KafkaError,
    KafkaNotReadyError,
    KafkaStartError,
    java_command,
    jvm_environment,
)
from fluxpool_cli.local.kafka.layout import ClusterLayout
from fluxpool_cli.local.kafka.settings import (
    CONTROLLER_LISTENER,
    OFFSETS_PARTITIONS,
    PLAIN_LISTENER,
    ListenerSpec,
    ScramUser,
    broker_properties,
    check_extra_properties,
    check_listeners,
    group_on_partition,
    render_properties,
)
from fluxpool_cli.local.loopback import HOST

_log = structlog.get_logger(__name__)
# Named from the broker's own folder, where its processes run: the names of folders above may have commas, which divide
# lists of Kafka, and letters outside the locale.
_SETTINGS_FILE = "server.properties"
_LOG_FOLDER = "log"
_READINESS_INTERVAL_SECONDS = 0.1
# One readiness question; a broker that is loading answers at once, so only a hung one takes this long.
_REQUEST_TIMEOUT_MS = 3000


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
        jvm_options: Sequence[str] = DEFAULT_JVM_OPTIONS,
    ) -> None:
        """Check the settings; touches nothing yet.

        `libs` is a folder of Kafka jars (`provide_kafka_libs`). `scram_users` take effect when the folder is formatted,
        all else at every start. Raises `ValueError` naming the setting that cannot be.
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
        self._jvm_options = tuple(jvm_options)
        self._brokers: tuple[KafkaBroker, ...] = ()

    @property
    def brokers(self) -> tuple[KafkaBroker, ...]:
        """The brokers, by node id from 1 on; empty before the first `start`."""
        return self._brokers

    @property
    def bootstrap_servers(self) -> str:
        """`host:port[,host:port...]` of the plain listener; the same after every restart."""
        return self.bootstrap_servers_of(PLAIN_LISTENER)

    def bootstrap_servers_of(self, listener: str) -> str:
        """Return the addresses of a listener by its name; raises `KafkaError` before `start` or when there is none."""
        if not self._brokers:
            raise KafkaError("the Kafka has no addresses before its first start")
        try:
            return ",".join(f"{HOST}:{broker.ports[listener]}" for broker in self._brokers)
        except KeyError:
            known = ", ".join(sorted(self._brokers[0].ports.keys() - {CONTROLLER_LISTENER}))
            raise KafkaError(f"there is no listener {listener!r}; known: {known}") from None

    async def start(self, *, deadline_seconds: float = 60) -> None:
        """Format the data folder if it is new, start every broker that does not run, return once all listen.

        Raises `KafkaStartError` with the end of the log when one dies or is too slow, `KafkaError` when the folder does
        not fit; then none of the brokers is left running.
        """
        java = java_command(self._libs, self._jvm_options)
        if not self._brokers:
            await self._prepare(java, deadline_seconds=deadline_seconds)
        try:
            await _together(broker.start(deadline_seconds=deadline_seconds) for broker in self._brokers)
        except BaseException:
            await self._kill_all()
            raise
        _log.info("kafka_started", bootstrap_servers=self.bootstrap_servers, data_dir=str(self.data_dir))

    async def wait_ready(self, *, deadline_seconds: float = 60) -> None:
        """Return once exactly the running brokers are registered and every group coordinator answers.

        The first call makes `__consumer_offsets`. Raises `KafkaStartError` when a broker dies meanwhile,
        `KafkaNotReadyError` with what was missing when the deadline passes, `KafkaError` when no broker runs.
        """
        running = [broker for broker in self._brokers if broker.pid is not None]
        if not running:
            raise KafkaError("no broker runs: start the Kafka before waiting for it")
        admin = AIOKafkaAdminClient(
            bootstrap_servers=[broker.address for broker in running], request_timeout_ms=_REQUEST_TIMEOUT_MS
        )
        missing: str | None = "the first answer"
        try:
            async with asyncio.timeout(deadline_seconds):
                while (
                    missing := await _missing_for_service(admin, [broker.node_id for broker in running])
                ) is not None:
                    for broker in running:
                        broker.check_alive()
                    await asyncio.sleep(_READINESS_INTERVAL_SECONDS)
        except TimeoutError:
            raise KafkaNotReadyError(
                f"Kafka at {self.bootstrap_servers} was not ready within {deadline_seconds:.0f} s; "
                f"still missing: {missing}; "
                f"the last lines of {running[0].log_path}:\n{running[0].log_tail()}"
            ) from None
        finally:
            await admin.close()

    async def stop(self, *, grace_seconds: float = 10) -> None:
        """Stop all brokers cleanly; those that still run after `grace_seconds` are killed."""
        await _together(broker.stop(grace_seconds=grace_seconds) for broker in self._brokers)

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

    async def _prepare(self, java: Sequence[str], *, deadline_seconds: float) -> None:
        layout = ClusterLayout.of(
            self.data_dir,
            brokers=self._broker_count,
            listeners=self._listeners,
            own_listeners=(PLAIN_LISTENER, CONTROLLER_LISTENER),
        )
        layout.save(self.data_dir)
        for node_id in layout.ports:
            self._write_settings(node_id, layout)
        if not layout.formatted:
            try:
                async with asyncio.timeout(deadline_seconds):
                    await _together(self._format(node_id, layout=layout, java=java) for node_id in layout.ports)
            except TimeoutError:
                raise KafkaStartError(f"formatting {self.data_dir} took more than {deadline_seconds:.0f} s") from None
            layout.formatted = True
            layout.save(self.data_dir)
        self._brokers = tuple(
            KafkaBroker(
                node_id=node_id,
                folder=self._settings_path(node_id).parent,
                command=[*java, "kafka.Kafka", _SETTINGS_FILE],
                ports=ports,
                log_path=self.data_dir / "logs" / f"broker-{node_id}.log",
            )
            for node_id, ports in sorted(layout.ports.items())
        )

    def _settings_path(self, node_id: int) -> Path:
        return self.data_dir / f"broker-{node_id}" / _SETTINGS_FILE

    def _write_settings(self, node_id: int, layout: ClusterLayout) -> None:
        path = self._settings_path(node_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Listener properties hold passwords and keys.
        path.touch(mode=0o600)
        properties = broker_properties(
            node_id=node_id,
            ports=layout.ports,
            listeners=self._listeners,
            log_dir=_LOG_FOLDER,
            extra_properties=self._extra_properties,
        )
        path.write_text(render_properties(properties))

    async def _format(self, node_id: int, *, layout: ClusterLayout, java: Sequence[str]) -> None:
        settings = self._settings_path(node_id)
        # What an interrupted format left behind; a formatted folder is never touched again.
        shutil.rmtree(settings.with_name(_LOG_FOLDER), ignore_errors=True)
        arguments = ["format", f"--cluster-id={layout.cluster_id}", "--config", settings.name]
        for user in self._scram_users:
            arguments += ["--add-scram", user.as_argument()]
        process = await asyncio.create_subprocess_exec(
            *java,
            "kafka.tools.StorageTool",
            *arguments,
            cwd=settings.parent,
            env=jvm_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise KafkaStartError(
                f"broker {node_id}: formatting its data folder failed with status {process.returncode}:\n"
                f"{output.decode(errors='replace').strip()}"
            )


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first failure ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _missing_for_service(admin: Any, node_ids: Sequence[int]) -> str | None:
    """Ask the questions a first client would; returns what is still missing, or None.

    By aiokafka: librdkafka's admin client ends the whole process when a coordinator that is still loading answers it,
    which is what this waits for (https://github.com/confluentinc/librdkafka/issues/5040).
    """
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        registered = {broker["node_id"] for broker in cluster["brokers"]}
        if registered != set(node_ids):
            # A dead broker stays registered, and its partitions without a leader, until its session is over.
            return f"broker(s) {sorted(node_ids)} alone to be registered (they are: {sorted(registered)})"
        for number in range(OFFSETS_PARTITIONS):
            # aiokafka drops an error of the whole group; a partition that was asked for by name is then absent.
            asked = TopicPartition("__consumer_offsets", number)
            if asked not in await admin.list_consumer_group_offsets(group_on_partition(number), partitions=[asked]):
                return f"the group coordinator of partition {number}"
    except (ClientError, TimeoutError) as error:
        return f"an answer without error ({error!r})"
    return None
