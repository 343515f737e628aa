"""Which Kafka, topics and groups a command reads: options first, then the worker's own variables, then local mode.

Owns that order. In a worker's environment the commands need no options: they read its `FLUXPOOL_KAFKA_*`,
`FLUXPOOL_TOPICS_*`, `FLUXPOOL_CONSUMER_GROUP` and `FLUXPOOL_LANES`, and no other variable.
"""

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from aiokafka.errors import AuthenticationFailedError, BrokerResponseError, KafkaError

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.data_dir import DEFAULT_NAME
from fluxpool_cli.local.state_file import running_stack
from fluxpool_cli.options import printable_path
from fluxpool_contract.kafka import KafkaConnection, TopicNames
from fluxpool_contract.settings import (
    DEFAULT_CONSUMER_GROUP,
    STANDARD_LANE,
    VIP_LANE,
    EnvironmentSettings,
    GroupId,
    Lane,
    SettingsError,
    serving_groups,
)
from fluxpool_transport.dlq import ResolutionInterruptedError
from fluxpool_transport.kafka import KafkaCredentialsError, KafkaUnavailableError, TopicError

T = TypeVar("T")

_SERVERS = "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS"
_READ = ("FLUXPOOL_KAFKA_", "FLUXPOOL_TOPICS_", "FLUXPOOL_CONSUMER_GROUP", "FLUXPOOL_LANES")
_POSITION = re.compile(r"^\d+: ")
"""The index of an address in the list, which mostly has one."""
_NOT_READ = frozenset({"FLUXPOOL_KAFKA_LIBS"})

BootstrapOption = Annotated[
    str | None,
    typer.Option(
        help="Kafka, as host:port[,host:port]; by default FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS, else the local stack's."
    ),
]
DataDirOption = Annotated[Path, typer.Option(help="Folder of the local stack.", callback=printable_path)]
DEFAULT_DATA_DIR = Path(DEFAULT_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """`--bootstrap-servers` and `--data-dir`."""

    bootstrap_servers: BootstrapOption = None
    data_dir: DataDirOption = DEFAULT_DATA_DIR


class KafkaTarget(EnvironmentSettings):
    """One cluster, the names of its topics, and the groups that serve them."""

    kafka: KafkaConnection
    topics: TopicNames = TopicNames()
    consumer_group: GroupId = DEFAULT_CONSUMER_GROUP
    lanes: tuple[Lane, ...] = ()

    @property
    def servers(self) -> str:
        """The addresses, for messages."""
        return ",".join(self.kafka.bootstrap_servers)

    def lane_groups(self) -> dict[str, tuple[str, str]]:
        """Name of each lane to its consumer group and topic."""
        names = [lane.name for lane in self.lanes] or [STANDARD_LANE.name, VIP_LANE.name]
        return dict(zip(names, self.groups().items(), strict=False))

    def groups(self) -> dict[str, str]:
        """Consumer group to the topic it serves."""
        return serving_groups(self.consumer_group, self.lanes, self.topics)


def find_target(
    bootstrap_servers: str | None, data_dir: Path, environment: Mapping[str, str] = os.environ
) -> KafkaTarget:
    """The target of a command.

    Raises `CommandError` when there is none, or when an address or variable is malformed, with the remedy.
    """
    variables = {
        name: text for name, text in environment.items() if name.startswith(_READ) and name not in _NOT_READ and text
    }
    if bootstrap_servers is not None:
        variables[_SERVERS] = bootstrap_servers
    elif _SERVERS not in variables:
        stack = running_stack(data_dir)
        if stack is None or stack.bootstrap_servers is None:
            raise CommandError(
                ExitCode.UNREACHABLE,
                f"no local stack runs in {data_dir}; start one with `fluxpool local up`, give --bootstrap-servers, "
                f"or set {_SERVERS}",
            )
        variables[_SERVERS] = stack.bootstrap_servers
    try:
        return KafkaTarget.from_environment(variables)
    except SettingsError as error:
        if bootstrap_servers is not None and str(error).startswith(_SERVERS):
            message = _POSITION.sub("", str(error).partition(": ")[2])
            raise typer.BadParameter(message, param_hint="--bootstrap-servers") from None
        raise CommandError(ExitCode.USAGE, str(error)) from None


def run_on(target: KafkaTarget, work: Coroutine[Any, Any, T]) -> T:
    """Run work with Kafka; every error becomes a `CommandError` with the exit code and the remedy."""
    try:
        return asyncio.run(work)
    except (BrokerResponseError, AuthenticationFailedError) as error:
        raise CommandError(
            ExitCode.UNREACHABLE,
            f"Kafka at {target.servers} refuses the request ({error}); check the Kafka user and its rights",
        ) from None
    except (KafkaError, KafkaUnavailableError) as error:
        raise CommandError(
            ExitCode.UNREACHABLE, f"Kafka at {target.servers} does not answer ({error}); check --bootstrap-servers"
        ) from None
    except ResolutionInterruptedError as error:
        raise CommandError(ExitCode.UNREACHABLE, str(error)) from None
    except (TopicError, KafkaCredentialsError) as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
