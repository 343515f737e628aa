"""A real gateway for tests: server and projector as processes, on unique topics."""

import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.settings import GatewaySettings
from kit.brokers.kafka import create_topics, unique_name
from kit.http.http_probe import answers_ok
from kit.programs.processes import whole_lines
from kit.programs.warm_start import Program, start_program
from kit.waiting import PATIENCE, wait_until, wait_until_blocking

START_DEADLINE_SECONDS = 60.0
STOP_DEADLINE_SECONDS = 30.0 * PATIENCE


@dataclass(slots=True)
class GatewayProcess:
    """A started gateway. Only the test restarts its programs, in place of a kubelet."""

    settings: GatewaySettings
    server: Program
    projector: Program
    log_path: Path
    log_start_bytes: int = 0
    """Where the log of these programs begins; earlier ones may have written the same file."""

    @property
    def url(self) -> str:
        """Its address, ending in a slash; the file must be there."""
        assert self.settings.address_file is not None
        return self.settings.address_file.read_text().strip()

    def log(self) -> str:
        """Output of its programs."""
        return self.log_path.read_text()

    def servers(self) -> list[int]:
        """Process ids of the living servers: the program itself, or uvicorn's workers."""
        if self.settings.processes == 1:
            return [self.server.pid] if self.server.poll() is None else []
        children = psutil.Process(self.server.pid).children()
        return [child.pid for child in children if _is_worker(child)]

    def pids(self) -> dict[str, int]:
        """Every living process by name."""
        servers = {f"server {number}": pid for number, pid in enumerate(self.servers())}
        return servers | ({"projector": self.projector.pid} if self.projector.poll() is None else {})

    def restart_projector(self) -> None:
        """Kill the projector and start another one."""
        self.projector.kill()
        self.projector.wait()
        self.projector = start_projector(self.settings, log_path=self.log_path)

    def wait_listening(self) -> None:
        """Return once a server answers and there is a store; raises with the log when a program ended instead."""
        assert self.settings.address_file is not None
        address_file = self.settings.address_file

        def answers() -> bool:
            assert self.server.poll() is None, self.log()
            assert self.projector.poll() is None, self.log()
            log = self.log_path.read_bytes()[self.log_start_bytes :]
            has_store = b"projector_started" in log or b"projector_standby" in log
            return has_store and address_file.exists() and answers_ok(f"{self.url}healthz")

        wait_until_blocking(answers, deadline_seconds=START_DEADLINE_SECONDS, what="the gateway's first answer")

    def wait_ready(self) -> None:
        """Return once every server process accepts tasks; one that is ready says nothing of another."""

        def all_ready() -> bool:
            assert self.server.poll() is None, self.log()
            lines = [json.loads(line) for line in whole_lines(self.log_path) if line.startswith("{")]
            ready = [line for line in lines if line["event"] == "broker_readiness_changed" and line["failure"] is None]
            return len(ready) >= self.settings.processes

        wait_until_blocking(all_ready, deadline_seconds=START_DEADLINE_SECONDS, what="every process to know the topics")

    def stop(self) -> tuple[int, int]:
        """SIGTERM to both, as a kubelet does; returns the exit statuses of server and projector."""
        programs = (self.server, self.projector)
        for program in programs:
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
        return self.server.wait(STOP_DEADLINE_SECONDS), self.projector.wait(STOP_DEADLINE_SECONDS)

    def kill(self) -> None:
        """SIGKILL all running processes."""
        for program in (self.server, self.projector):
            program.kill()
            program.wait()


async def told(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The first answer but 503: by that a gateway says that its projection is behind, as on a busy machine."""
    answer: httpx.Response | None = None

    async def is_told() -> bool:
        nonlocal answer
        answer = await ask()
        return answer.status_code != httpx.codes.SERVICE_UNAVAILABLE

    await wait_until(is_told, deadline_seconds=START_DEADLINE_SECONDS, what="an answer of a gateway that can tell")
    assert answer is not None
    return answer


async def gateway_topics(bootstrap_servers: str, *, task_partitions: int = 3) -> TopicNames:
    """Topics that no other test uses, created."""
    names = {role: unique_name(role) for role in ("tasks", "tasks_vip", "results", "progress", "dead_letters")}
    topics = TopicNames(**names)
    partitions = {topics.tasks: task_partitions, topics.tasks_vip: task_partitions, topics.results: 2}
    await create_topics(bootstrap_servers, {**partitions, topics.progress: 2, topics.dead_letters: 2})
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
            # On a busy machine, acknowledgements are late.
            "produce_deadline_seconds": 10.0 * PATIENCE,
            "address_file": folder / "address",
            **settings,
        }
    )


def start_gateway(settings: GatewaySettings, *, environment: Mapping[str, str] = os.environ) -> GatewayProcess:
    """Start both programs and return at once."""
    assert settings.address_file is not None
    log_path = settings.address_file.with_suffix(".log")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log_start_bytes = log_path.stat().st_size if log_path.exists() else 0
    server = _start("fluxpool_gateway", settings, log_path=log_path, environment=environment)
    projector = start_projector(settings, log_path=log_path, environment=environment)
    return GatewayProcess(settings, server, projector, log_path, log_start_bytes)


def start_projector(
    settings: GatewaySettings, *, log_path: Path, environment: Mapping[str, str] = os.environ
) -> Program:
    """Start only a projector and return at once."""
    return _start("fluxpool_gateway.projector", settings, log_path=log_path, environment=environment)


def start_dispatcher(settings: GatewaySettings, *, log_path: Path) -> Program:
    """Start a dispatcher of webhooks and return at once."""
    return _start("fluxpool_gateway.dispatcher", settings, log_path=log_path, environment=os.environ)


@contextmanager
def running_gateway(settings: GatewaySettings) -> Iterator[GatewayProcess]:
    """Run a gateway for a block; it responds, and is stopped at the end, by force if necessary."""
    gateway = start_gateway(settings)
    try:
        gateway.wait_listening()
        yield gateway
    finally:
        try:
            gateway.stop()
        finally:
            gateway.kill()


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is a living worker of uvicorn, and not multiprocessing's resource tracker."""
    try:
        return any("spawn_main" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _start(module: str, settings: GatewaySettings, *, log_path: Path, environment: Mapping[str, str]) -> Program:
    with log_path.open("ab") as log:
        return start_program(module, environment={**environment, **settings.to_environment()}, output=log)
