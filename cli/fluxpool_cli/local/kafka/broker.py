"""One broker as an operating-system process.

Owns the Java command line and when the process listens. Knows nothing of Kafka's protocol: whether a running broker
can serve is the cluster's question.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluxpool_cli.local.child_process import ChildProcess
from fluxpool_cli.local.kafka.settings import PLAIN_LISTENER
from fluxpool_cli.local.loopback import HOST, is_free

# Quickest to start and small: a broker for a handful of clients never needs the second compiler or parallel collection.
DEFAULT_JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
LOG_CONFIG = Path(__file__).with_name("log4j2.properties")
_POLL_INTERVAL_SECONDS = 0.02


class KafkaError(Exception):
    """The local Kafka cannot do what was asked; the message says why and what to do."""


class KafkaStartError(KafkaError):
    """A broker did not come up; the message ends with the last lines of its log."""


class KafkaNotReadyError(KafkaError):
    """The brokers run but did not get ready to serve in time."""


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


def jvm_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which Java reads names of files as UTF-8, whatever the locale is."""
    return {**environment, "LC_ALL": "C.UTF-8"}


class KafkaBroker(ChildProcess):
    """A handle on one broker; made by `KafkaCluster`."""

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, which a paused process takes only once it is resumed."""
        super().terminate()
        if self.pid is not None:
            self.resume()

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            raise self.error("does not run")
        os.kill(pid, number)

    def __init__(
        self, *, node_id: int, folder: Path, command: Sequence[str], ports: Mapping[str, int], log_path: Path
    ) -> None:
        """Take the folder to run in, the full command line and the ports that it will listen on; starts nothing."""
        super().__init__(
            f"broker {node_id}",
            command,
            log_path=log_path,
            error=KafkaStartError,
            folder=folder,
            environment=jvm_environment(),
        )
        self.node_id = node_id
        self.ports = dict(ports)

    @property
    def address(self) -> str:
        """`host:port` of the plain listener."""
        return f"{HOST}:{self.ports[PLAIN_LISTENER]}"

    async def start(self, *, deadline_seconds: float = 60) -> None:
        """Start the process and return once all listeners accept connections; does nothing when it runs.

        Raises `KafkaStartError` when the process dies or the deadline passes; the process is then gone.
        """
        if self.pid is not None:
            return
        self._check_ports_are_free()
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

    def _check_ports_are_free(self) -> None:
        for name, port in self.ports.items():
            if not is_free(port):
                raise KafkaStartError(
                    f"broker {self.node_id}: port {port} of listener {name} is in use; "
                    "is another cluster running on the same data folder?"
                )

    async def _accepts(self, port: int) -> None:
        while True:
            self.check_alive()
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(_POLL_INTERVAL_SECONDS)
            else:
                writer.close()
                await writer.wait_closed()
                return
