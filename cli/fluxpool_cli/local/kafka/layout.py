"""What a Kafka data folder remembers between runs: cluster id, ports, and whether it is formatted.

Owns `cluster.json` and the choice of ports. Knows nothing of processes.
"""

import base64
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError

from fluxpool_cli.local.kafka.broker import CONTROLLER_LISTENER, PLAIN_LISTENER, KafkaStartError
from fluxpool_cli.local.loopback import NoFreePortError, free_port


class ClusterLayout(BaseModel):
    """The content of `cluster.json`; `ports` maps node id -> listener name -> port."""

    cluster_id: str
    ports: dict[int, dict[str, Annotated[int, Field(ge=1, le=65_535)]]]
    formatted: bool = False

    @classmethod
    def of(cls, folder: Path, *, brokers: int = 1, listeners: Sequence[str] = ()) -> Self:
        """Return the stored layout, or a new one; chooses the ports that are still missing.

        `listeners` are those beside the plain and the controller's. Raises `KafkaStartError` when the folder holds
        another number of brokers, its file is damaged or no port is free.
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
            layout.ports[node_id] = {name: stored.get(name) or _choose(taken) for name in names}
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
        draft.write_text(self.model_dump_json(indent=2))
        draft.replace(folder / "cluster.json")


def _choose(taken: set[int]) -> int:
    try:
        port = free_port(taken=taken)
    except NoFreePortError as error:
        raise KafkaStartError(str(error)) from error
    taken.add(port)
    return port
