"""One Apache Kafka broker in KRaft's combined mode, as a child process with a folder of its own.

Owns the Java command line, `server.properties`, formatting, and the checks that the broker listens and is ready. The
caller chooses folder and ports.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from fluxpool_cli.local.child_process import ChildProcess
from fluxpool_cli.local.loopback import HOST, is_free

# Used by brokers and our own admin calls: every broker has it, and it needs no login.
PLAIN_LISTENER = "PLAINTEXT"
CONTROLLER_LISTENER = "CONTROLLER"
# Quickest to start and small: a broker for a handful of clients never needs the second compiler or parallel collection.
DEFAULT_JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
LOG_CONFIG = Path(__file__).with_name("log4j2.properties")
# Relative to the broker's own folder, where its processes run: the names of parent folders may contain commas,
# which separate Kafka's lists, and characters outside the locale.
SETTINGS_FILE = "server.properties"
LOG_FOLDER = "log"
_LISTEN_INTERVAL_SECONDS = 0.02
_READINESS_INTERVAL_SECONDS = 0.1
# One readiness question; a broker that is loading answers at once, so only a hung one takes this long.
_REQUEST_TIMEOUT_MS = 3000


class KafkaStartError(Exception):
    """Kafka does not start or does not get ready; the message says why and ends with its log, where there is one."""


def java_command(libs: Path, jvm_options: Sequence[str], *, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the start of a command line that runs a main class of Kafka.

    Raises `KafkaStartError` when there is no `java` under `$JAVA_HOME` or on the path.
    """
    java_home = environment.get("JAVA_HOME")
    java = shutil.which(str(Path(java_home, "bin", "java")) if java_home else "java", path=environment.get("PATH"))
    if java is None:
        raise KafkaStartError(
            f"{f'JAVA_HOME={java_home!r} has no bin/java' if java_home else 'there is no java on the path'}: "
            "install a Java runtime 17 or newer, or use a running Kafka with --bootstrap-servers"
        )
    return [java, *jvm_options, f"-Dlog4j2.configurationFile={LOG_CONFIG}", "-cp", str(libs / "*")]


def plain_properties(ports: Mapping[str, int]) -> dict[str, str]:
    """The settings of a single broker, as node 1, with its plain and its controller's listener; small and quick."""
    controller = f"{HOST}:{ports[CONTROLLER_LISTENER]}"
    plain = f"{PLAIN_LISTENER}://{HOST}:{ports[PLAIN_LISTENER]}"
    one_replica = (
        "offsets.topic.num.partitions",
        "offsets.topic.replication.factor",
        "transaction.state.log.num.partitions",
        "transaction.state.log.replication.factor",
        "transaction.state.log.min.isr",
        "share.coordinator.state.topic.num.partitions",
        "share.coordinator.state.topic.replication.factor",
        "share.coordinator.state.topic.min.isr",
    )
    return dict.fromkeys(one_replica, "1") | {
        "auto.create.topics.enable": "false",
        # A broker that was SIGKILLed may only register again once its old session is over, with the defaults after
        # 12 s. But one whose heartbeats are late, while images take every core, makes no topics for that moment.
        "broker.session.timeout.ms": "6000",
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
        "process.roles": "broker,controller",
        "node.id": "1",
        "log.dirs": LOG_FOLDER,
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": CONTROLLER_LISTENER,
        "inter.broker.listener.name": PLAIN_LISTENER,
        "listener.security.protocol.map": f"{PLAIN_LISTENER}:PLAINTEXT,{CONTROLLER_LISTENER}:PLAINTEXT",
        "listeners": f"{plain},{CONTROLLER_LISTENER}://{controller}",
        "advertised.listeners": plain,
    }


class KafkaBroker(ChildProcess):
    """One broker of a Kafka, by default the only one."""

    def __init__(
        self,
        folder: Path,
        *,
        libs: Path,
        ports: Mapping[str, int],
        log_path: Path,
        node_id: int = 1,
        jvm_options: Sequence[str] = DEFAULT_JVM_OPTIONS,
    ) -> None:
        """Take its folder, a folder of Kafka jars and the port of each listener; touches nothing yet.

        Raises `KafkaStartError` when there is no Java.
        """
        self._java = java_command(libs, jvm_options)
        self._settings_path = folder / SETTINGS_FILE
        # Java reads names of files in the locale's encoding.
        self._jvm_environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        super().__init__(
            f"kafka-{node_id}",
            [*self._java, "kafka.Kafka", SETTINGS_FILE],
            log_path=log_path,
            error=KafkaStartError,
            folder=folder,
            environment=self._jvm_environment,
        )
        self.node_id = node_id
        self.ports = dict(ports)

    @property
    def address(self) -> str:
        """`host:port` of the plain listener."""
        return f"{HOST}:{self.ports[PLAIN_LISTENER]}"

    def write_settings(self, text: str) -> None:
        """Write `server.properties`, which the next start reads."""
        self._settings_path.parent.mkdir(parents=True, exist_ok=True)
        # Listener properties may hold passwords and keys.
        self._settings_path.touch(mode=0o600)
        self._settings_path.write_text(text)

    async def format(self, cluster_id: str, *arguments: str) -> None:
        """Format the data folder, with more arguments of Kafka's tool; raises `KafkaStartError`."""
        # What an interrupted format left behind.
        shutil.rmtree(self._settings_path.with_name(LOG_FOLDER), ignore_errors=True)
        process = await asyncio.create_subprocess_exec(
            *self._java,
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            f"--config={SETTINGS_FILE}",
            *arguments,
            cwd=self._settings_path.parent,
            env=self._jvm_environment,
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
                f"{self.name}: formatting its data folder failed with status {process.returncode}:\n"
                f"{output.decode(errors='replace').strip()}"
            )

    async def start(self, *, deadline_seconds: float = 60) -> None:
        """Start the process and return once all listeners accept connections; does nothing when it runs.

        Raises `KafkaStartError` when the process dies or the deadline passes; the process is then gone.
        """
        if self.pid is not None:
            return
        for name, port in self.ports.items():
            if not is_free(port):
                raise KafkaStartError(
                    f"{self.name}: port {port} of listener {name} is in use; "
                    "is another Kafka running on the same data folder?"
                )
        self.spawn()
        try:
            async with asyncio.timeout(deadline_seconds):
                for port in self.ports.values():
                    await self._accepts(port)
        except TimeoutError:
            await self.kill()
            raise self.error(f"did not listen within {deadline_seconds:.0f} s") from None
        except BaseException:
            await self.kill()
            raise

    async def _accepts(self, port: int) -> None:
        while True:
            self.check_alive()
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(_LISTEN_INTERVAL_SECONDS)
            else:
                writer.close()
                await writer.wait_closed()
                return


async def wait_ready(brokers: Sequence[KafkaBroker], *, groups: Sequence[str], deadline_seconds: float) -> None:
    """Return once exactly these brokers are registered and the coordinator of each group answers.

    `groups` are one for each partition of `__consumer_offsets`, in order; the first question makes that topic. Raises
    `KafkaStartError` when a broker dies meanwhile, or with what was missing when the deadline passes.
    """
    admin = AIOKafkaAdminClient(
        bootstrap_servers=[broker.address for broker in brokers], request_timeout_ms=_REQUEST_TIMEOUT_MS
    )
    missing: str | None = "the first answer"
    try:
        async with asyncio.timeout(deadline_seconds):
            while (missing := await _missing_for_service(admin, brokers, groups)) is not None:
                for broker in brokers:
                    broker.check_alive()
                await asyncio.sleep(_READINESS_INTERVAL_SECONDS)
    except TimeoutError:
        reason = f"was not ready within {deadline_seconds:.0f} s; still missing: {missing}"
        raise brokers[0].error(reason) from None
    finally:
        await admin.close()


async def _missing_for_service(admin: Any, brokers: Sequence[KafkaBroker], groups: Sequence[str]) -> str | None:
    """Ask what a first client would ask; returns what is still missing, or null.

    By aiokafka: librdkafka's admin client ends the whole process when a coordinator that is still loading answers it,
    which is what this waits for (https://github.com/confluentinc/librdkafka/issues/5040).
    """
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        registered = {broker["node_id"] for broker in cluster["brokers"]}
        expected = {broker.node_id for broker in brokers}
        if registered != expected:
            # A dead broker stays registered, and its partitions without a leader, until its session is over.
            return f"broker(s) {sorted(expected)} alone to be registered (they are: {sorted(registered)})"
        for partition, group in enumerate(groups):
            # aiokafka drops an error of the whole group; a partition that was asked for by name is then absent.
            asked = TopicPartition("__consumer_offsets", partition)
            if asked not in await admin.list_consumer_group_offsets(group, partitions=[asked]):
                return f"the group coordinator of partition {partition}"
    except (KafkaError, TimeoutError) as error:
        return f"an answer without error ({error!r})"
    return None
