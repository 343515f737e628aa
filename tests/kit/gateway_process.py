"""A real gateway for tests: `python -m fluxpool_gateway` in processes of its own, on topics of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.settings import GatewaySettings
from kit.kafka import create_topics, unique_name
from kit.waiting import wait_until_blocking

START_DEADLINE_SECONDS = 60.0
STOP_DEADLINE_SECONDS = 30.0


@dataclass(slots=True)
class GatewayProcess:
    """A started gateway."""

    settings: GatewaySettings
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def url(self) -> str:
        """Its address, ending in a slash; the file must be there."""
        assert self.settings.address_file is not None
        return self.settings.address_file.read_text().strip()

    def log(self) -> str:
        """What it and its children wrote."""
        return self.log_path.read_text()

    def children(self, role: str) -> list[int]:
        """Process ids of the living children of a role (`server` or `projector`)."""
        listed = subprocess.run(
            ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
        ).stdout
        return [
            int(pid)
            for pid, parent, arguments in (line.split(None, 2) for line in listed.splitlines()[1:])
            if int(parent) == self.process.pid and f"fluxpool_gateway.process.child {role}" in arguments
        ]

    def wait_listening(self) -> None:
        """Return once the address is known; raises with the log when the gateway ended instead."""
        assert self.settings.address_file is not None
        address_file = self.settings.address_file

        def listening() -> bool:
            assert self.process.poll() is None, self.log()
            return address_file.exists()

        wait_until_blocking(listening, deadline_seconds=START_DEADLINE_SECONDS, what="the gateway's address")

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_DEADLINE_SECONDS)


async def gateway_topics(bootstrap_servers: str, *, task_partitions: int = 3) -> TopicNames:
    """Topics that no other test uses, created."""
    names = {role: unique_name(role) for role in ("tasks", "tasks_vip", "results", "progress")}
    topics = TopicNames(**names)
    partitions = {topics.tasks: task_partitions, topics.tasks_vip: task_partitions, topics.results: 2}
    await create_topics(bootstrap_servers, {**partitions, topics.progress: 2})
    return topics


def gateway_settings(bootstrap_servers: str, folder: Path, topics: TopicNames, **settings: object) -> GatewaySettings:
    """Settings of a gateway that keeps everything below `folder`."""
    return GatewaySettings.model_validate(
        {
            "kafka": KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(","))),
            "storage": StorageSettings(url=(folder / "images").as_uri()),
            "topics": topics,
            "database_file": folder / "tasks.sqlite",
            "listen_port": 0,
            "address_file": folder / "address",
            **settings,
        }
    )


def start_gateway(settings: GatewaySettings, *, environment: Mapping[str, str] = os.environ) -> GatewayProcess:
    """Start it and return at once."""
    assert settings.address_file is not None
    log_path = settings.address_file.with_suffix(".log")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fluxpool_gateway"],
            env={**environment, **settings.to_environment()},
            stdout=log,
            stderr=log,
        )
    return GatewayProcess(settings, process, log_path)


@contextmanager
def running_gateway(settings: GatewaySettings) -> Iterator[GatewayProcess]:
    """Run a gateway for a block; it listens, and is stopped at the end, by force if need be."""
    gateway = start_gateway(settings)
    try:
        gateway.wait_listening()
        yield gateway
    finally:
        try:
            gateway.stop()
        finally:
            gateway.process.kill()
            gateway.process.wait()
