"""The environment of the gateway and the workers of a local stack, made from its options.

Starts nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_cli.local.data_dir import DataDir
from fluxpool_cli.local.loopback import HOST
from fluxpool_cli.local.options import DRAIN_GRACE_SECONDS, StackOptions
from fluxpool_contract.folder_address import folder_address
from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.settings import (
    DEFAULT_CONSUMER_GROUP,
    ENVIRONMENT_PREFIX,
    STANDARD_LANE,
    VIP_LANE,
    ImageSettings,
    Lane,
    ModelSettings,
    StorageSettings,
    WorkerSettings,
)
from fluxpool_gateway.settings import GatewaySettings, WebhookSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSettings:
    """The settings that gateway and workers share."""

    data_dir: DataDir
    target: KafkaTarget
    gateway_port: int
    options: StackOptions

    @property
    def gateway_url(self) -> str:
        """Where the gateway listens; image addresses begin with it."""
        return f"http://{HOST}:{self.gateway_port}"

    @property
    def model(self) -> str:
        """Checkpoint folder or hub id."""
        return model_of(self.options, self.data_dir)

    def gateway_environment(self) -> Mapping[str, str]:
        """Of the gateway process."""
        settings = GatewaySettings(
            kafka=self.target.kafka,
            topics=self.target.topics,
            storage=self._storage(),
            database_file=self.data_dir.database,
            listen_host=HOST,
            listen_port=self.gateway_port,
            tenant_secret_file=self.data_dir.tenant_secret,
            # Receivers are programs on this machine, which the users of this gateway can reach anyway.
            webhooks=WebhookSettings(allow_http=True, allowed_networks=("127.0.0.0/8", "::1/128")),
        )
        return _inherited() | settings.to_environment()

    def worker_environment(self, name: str, health_port: int) -> Mapping[str, str]:
        """Of the worker process `name`."""
        # Workers share the cores: a thread for each core in every worker would slow all of them down.
        threads = max(1, (os.cpu_count() or 1) // self.options.max_workers)
        settings = self.worker_settings(worker_name=name, health_port=health_port)
        return {"OMP_NUM_THREADS": str(threads)} | _inherited() | settings.to_environment()

    def worker_settings(self, **of_one_worker: Any) -> WorkerSettings:
        """What all workers share, with what one of them has of its own."""
        return WorkerSettings(
            kafka=self.target.kafka,
            topics=self.target.topics,
            storage=self._storage(),
            model=ModelSettings(id=self.model, offline=Path(self.model).is_dir(), lora_folder=self.options.lora_folder),
            image=ImageSettings(
                embed_parameters=self.options.embed_parameters, signing_folder=self.options.signing_folder
            ),
            lanes=lanes_of(self.target.topics),
            tenant_secret_file=self.data_dir.tenant_secret,
            pool="local",
            gateway_url=self.gateway_url,
            health_host=HOST,
            drain_grace_seconds=DRAIN_GRACE_SECONDS,
            **of_one_worker,
        )

    def _storage(self) -> StorageSettings:
        return StorageSettings(url=folder_address(self.data_dir.images))


def model_of(options: StackOptions, data_dir: DataDir) -> str:
    """Checkpoint folder (absolute) or hub id."""
    if options.model is None:
        return str(data_dir.tiny_model)
    folder = Path(options.model)
    return str(folder.resolve()) if folder.is_dir() else options.model


def lanes_of(topics: TopicNames) -> tuple[Lane, ...]:
    """The lanes that the stack's workers serve, the preferred one first."""
    # Both groups are named: without a name the first lane, here the vip one, would have the group without a suffix.
    vip = {"topic": topics.tasks_vip, "consumer_group": f"{DEFAULT_CONSUMER_GROUP}-{VIP_LANE.name}"}
    standard = {"topic": topics.tasks, "consumer_group": DEFAULT_CONSUMER_GROUP}
    return VIP_LANE.model_copy(update=vip), STANDARD_LANE.model_copy(update=standard)


def _inherited() -> dict[str, str]:
    """This process's environment without `FLUXPOOL_` settings, which are meant for other parts or the command line."""
    return {name: value for name, value in os.environ.items() if not name.startswith(f"{ENVIRONMENT_PREFIX}_")}
