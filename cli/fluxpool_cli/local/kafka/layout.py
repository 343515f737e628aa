"""What a Kafka data folder remembers between runs: cluster id, number of brokers, ports, and whether it is formatted.

Owns `cluster.json` and the choice of ports. Knows nothing of processes.
"""

import base64
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError

from fluxpool_cli.local.kafka.broker import KafkaError
from fluxpool_cli.local.kafka.settings import ListenerSpec
from fluxpool_cli.local.loopback import NoFreePortError, free_port


class ClusterLayout(BaseModel):
    """The content of `cluster.json`; `ports` maps node id -> listener name -> port."""

    cluster_id: str
    ports: dict[int, dict[str, Annotated[int, Field(ge=1, le=65_535)]]]
    formatted: bool = False

    @classmethod
    def of(cls, folder: Path, *, brokers: int, listeners: Iterable[ListenerSpec], own_listeners: Iterable[str]) -> Self:
        """Return the kept layout, or a new one; ports still missing are chosen, fixed ones taken as told.

        Raises `KafkaError` when the folder holds another number of brokers, its file is damaged or no port is free.
        """
        layout = cls._kept(folder) or cls(
            cluster_id=base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode(),
            ports={node_id: {} for node_id in range(1, brokers + 1)},
        )
        if len(layout.ports) != brokers:
            raise KafkaError(
                f"{folder} holds a Kafka of {len(layout.ports)} broker(s), not {brokers}: use another data folder"
            )
        fixed = {spec.name: spec.port for spec in listeners}
        names = [*own_listeners, *fixed]
        taken = {port for kept in layout.ports.values() for port in kept.values()}
        for node_id, kept in layout.ports.items():
            layout.ports[node_id] = {name: fixed.get(name) or kept.get(name) or _choose(taken) for name in names}
        return layout

    @classmethod
    def _kept(cls, folder: Path) -> Self | None:
        path = folder / "cluster.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise KafkaError(
                f"{path} is damaged ({error.error_count()} faults): remove {folder} to start anew"
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
        raise KafkaError(str(error)) from error
    taken.add(port)
    return port
