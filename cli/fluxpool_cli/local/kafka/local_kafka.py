"""The Kafka of a local stack: one broker whose data folder, address and records outlive its stops.

Owns `cluster.json`, the choice of ports, and the order of formatting, start and readiness. Creates no topics.
"""

import asyncio
import base64
import uuid
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError

from fluxpool_cli.local.kafka.broker import (
    CONTROLLER_LISTENER,
    PLAIN_LISTENER,
    KafkaBroker,
    KafkaStartError,
    plain_properties,
    wait_ready,
)
from fluxpool_cli.local.loopback import NoFreePortError, free_port

# `__consumer_offsets` has one partition, so the coordinator of any group is that of all.
_READINESS_GROUP = "fluxpool-readiness"


def _choose(taken: Container[int]) -> int:
    try:
        return free_port(taken=taken)
    except NoFreePortError as error:
        raise KafkaStartError(str(error)) from error


class ClusterLayout(BaseModel):
    """The content of `cluster.json`, kept between runs; `ports` maps node id -> listener name -> port."""

    cluster_id: str
    ports: dict[int, dict[str, Annotated[int, Field(ge=1, le=65_535)]]]
    formatted: bool = False

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        brokers: int = 1,
        listeners: Sequence[str] = (),
        choose_port: Callable[[Container[int]], int] = _choose,
    ) -> Self:
        """Return the stored layout, or a new one; chooses the ports that are still missing.

        `listeners` are those beside the plain and the controller's. `choose_port` gets the ports that are taken.
        Raises `KafkaStartError` when the folder holds another number of brokers, its file is damaged or no port is
        free.
        """
        layout = cls._stored(folder) or cls(
            cluster_id=base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode(),
            ports={node_id: {} for node_id in range(1, brokers + 1)},
        )
        if len(layout.ports) != brokers:
            raise KafkaStartError(
                f"{folder} holds a Kafka of {len(layout.ports)} broker(s), not {brokers}: use another data folder"
            )
        names = (PLAIN_LISTENER, CONTROLLER_LISTENER, *listeners)
        taken = {port for stored in layout.ports.values() for port in stored.values()}
        for node_id, stored in layout.ports.items():
            layout.ports[node_id] = {}
            for name in names:
                layout.ports[node_id][name] = stored.get(name) or choose_port(taken)
                taken.add(layout.ports[node_id][name])
        return layout

    @classmethod
    def _stored(cls, folder: Path) -> Self | None:
        path = folder / "cluster.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise KafkaStartError(
                f"{path} is damaged ({error.error_count()} faults): remove {folder} to start with an empty Kafka"
            ) from error

    def save(self, folder: Path) -> None:
        """Write `cluster.json` in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "cluster.json.new"
        draft.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        draft.replace(folder / "cluster.json")


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
