"""The Kafka of a local stack: one broker whose data folder, address and records outlive its stops.

Owns the order of formatting, start and readiness. Creates no topics.
"""

import asyncio
from pathlib import Path

from fluxpool_cli.local.kafka.broker import KafkaBroker, KafkaStartError, plain_properties, wait_ready
from fluxpool_cli.local.kafka.layout import ClusterLayout

# `__consumer_offsets` has one partition, so the coordinator of any group is that of all.
_READINESS_GROUP = "fluxpool-readiness"


class LocalKafka:
    """One broker with a data folder of its own (`cluster.json`, `broker-1/`, `logs/`)."""

    def __init__(self, data_dir: Path, *, libs: Path) -> None:
        """Take the folder and a folder of Kafka jars (`provide_kafka_libs`), and choose ports; starts nothing.

        Raises `KafkaStartError` when the folder does not fit or there is no Java.
        """
        self.data_dir = data_dir.resolve()
        self._layout = ClusterLayout.of(self.data_dir)
        self.broker = KafkaBroker(
            self.data_dir / "broker-1",
            libs=libs,
            ports=self._layout.ports[1],
            log_path=self.data_dir / "logs" / "broker-1.log",
        )

    @property
    def bootstrap_servers(self) -> str:
        """`host:port`; the same after every restart."""
        return self.broker.address

    async def start(self, *, deadline_seconds: float = 60) -> None:
        """Format the data folder if it is new, start the broker, return once it can serve; nothing when it runs.

        Raises `KafkaStartError` with the end of the log when it dies or is too slow; then it does not run.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._prepare()
        except TimeoutError:
            raise KafkaStartError(f"formatting {self.data_dir} took more than {deadline_seconds:.0f} s") from None
        await self.broker.start(deadline_seconds=deadline_seconds)
        try:
            await wait_ready([self.broker], groups=[_READINESS_GROUP], deadline_seconds=deadline_seconds)
        except BaseException:
            await self.broker.kill()
            raise

    async def stop(self) -> None:
        """Stop the broker; SIGKILL it when it still runs after ten seconds."""
        await self.broker.stop()

    async def _prepare(self) -> None:
        self._layout.save(self.data_dir)
        properties = plain_properties(self.broker.ports)
        self.broker.write_settings("".join(f"{name}={value}\n" for name, value in properties.items()))
        if not self._layout.formatted:
            await self.broker.format(self._layout.cluster_id)
            self._layout.formatted = True
            # Written last: what an interrupted format left behind is formatted again.
            self._layout.save(self.data_dir)
