"""Real workers on the real broker: processes with unique topics and groups and a separate store.

Knows how a worker is started, signalled and observed from outside; knows no expectations of tests.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.task import EmbedParameters
from fluxpool_contract.settings.worker import (
    ImageSettings,
    Lane,
    ModelDevice,
    ModelSettings,
    StorageSettings,
    WorkerSettings,
)
from kit.brokers.kafka import OffsetReader, TopicReader, TopicRecord, create_topics, unique_name
from kit.http.http_probe import answers_ok
from kit.ports import own_port
from kit.programs.processes import whole_lines
from kit.programs.warm_start import Program, start_program, warm_engine
from kit.waiting import wait_until

SESSION_TIMEOUT_SECONDS = 6.0
"""The broker's own minimum (`group.min.session.timeout.ms`)."""
LOOK_SECONDS = 0.1
"""Between two reads of a topic: the workers need the cores."""
READY_SECONDS = 180.0
"""The engine imports torch and diffusers, which takes long on a busy machine."""
UNHURRIED_REBALANCE: Mapping[str, Any] = MappingProxyType(
    {"rebalance_timeout_seconds": 60.0, "revoke_wait_seconds": 30.0}
)
"""Settings for workers that end their tasks in flight before partitions move, however long a busy machine takes."""
UNHURRIED: Mapping[str, Any] = MappingProxyType({"session_timeout_seconds": 45.0, **UNHURRIED_REBALANCE})
"""Settings for workers that must generate nothing twice, and that no busy machine puts out of their group."""


@dataclass(slots=True)
class WorkerProcess:
    """One worker, observed from outside."""

    name: str
    process: Program
    health_url: str
    log_file: Path

    @property
    def pid(self) -> int:
        """Process id of the agent."""
        return self.process.pid

    def log(self) -> list[dict[str, Any]]:
        """Its log so far, line by line."""
        return [json.loads(line) for line in whole_lines(self.log_file) if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.log() if line.get("event") == event]

    def engine_pid(self) -> int:
        """Process id of the present engine."""
        return int(self.events("engine_started")[-1]["pid"])

    async def wait_ready(self) -> None:
        """Wait until `/readyz` is ok; fails with the log when the worker ends first."""

        async def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log_file.read_text()}")
            return await asyncio.to_thread(answers_ok, f"{self.health_url}/readyz")

        await wait_until(ready, deadline_seconds=READY_SECONDS, what=f"{self.name} to be ready")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent."""
        self.process.send_signal(number)

    async def wait_exit(self, deadline_seconds: float) -> int:
        """Wait for the exit code."""
        await wait_until(
            lambda: self.process.poll() is not None, deadline_seconds=deadline_seconds, what=f"{self.name} to exit"
        )
        return self.process.wait()

    def end(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class WorkerBench:
    """Topics, groups and a store for one test, and its workers."""

    bootstrap_servers: str
    folder: Path
    model: str
    topics: TopicNames
    group: str
    engine_command: tuple[str, ...] = ()
    retry_delays: tuple[str, ...] = ()
    workers: list[WorkerProcess] = field(default_factory=list)
    reader: TopicReader = field(init=False)
    offsets: OffsetReader = field(init=False)

    def __post_init__(self) -> None:
        """Create the clients that observe topics and groups."""
        self.reader = TopicReader(self.bootstrap_servers)
        self.offsets = OffsetReader(self.bootstrap_servers)

    def settings(self, name: str, **changes: Any) -> WorkerSettings:
        """Settings of one worker."""
        values: dict[str, Any] = {
            "kafka": KafkaConnection(bootstrap_servers=tuple(self.bootstrap_servers.split(","))),
            "storage": StorageSettings(url=self.images.as_uri()),
            "model": ModelSettings(id=self.model, device=ModelDevice.CPU, offline=True),
            "image": ImageSettings(embed_parameters=EmbedParameters.ALL),
            "topics": self.topics,
            "retry_delays": self.retry_delays,
            "consumer_group": self.group,
            "lanes": (
                Lane(name="standard", topic=self.topics.tasks),
                Lane(name="vip", topic=self.topics.tasks_vip, preference=10),
            ),
            "worker_name": name,
            "health_host": "127.0.0.1",
            "health_port": own_port(),
            "session_timeout_seconds": SESSION_TIMEOUT_SECONDS,
            "rebalance_timeout_seconds": 10.0,
            "engine_command": self.engine_command,
        }
        return WorkerSettings(**{**values, **changes})

    @property
    def images(self) -> Path:
        """The object store's folder."""
        return self.folder / "images"

    def start(
        self, *, environment: Mapping[str, str] | None = None, module: str = "fluxpool_worker", **changes: Any
    ) -> WorkerProcess:
        """Start a worker; `environment` is added to its own. `module` is its program: `kit.workers.eager_worker`."""
        name = f"worker-{len(self.workers) + 1}"
        settings = self.settings(name, **changes)
        log_file = self.folder / f"{name}.log"
        with log_file.open("wb") as log:
            process = start_program(
                module,
                environment={
                    "PATH": os.environ["PATH"],
                    "HOME": os.environ["HOME"],
                    "OMP_NUM_THREADS": "1",
                    **settings.to_environment(),
                    **(environment or {}),
                },
                output=log,
                # Another release's changes are made by Python before it imports anything.
                executed="PYTHONPATH" in (environment or {}),
            )
        worker = WorkerProcess(name, process, f"http://127.0.0.1:{settings.health_port}", log_file)
        self.workers.append(worker)
        return worker

    async def start_ready(self, **arguments: Any) -> WorkerProcess:
        """Start a worker and wait until it is ready."""
        worker = self.start(**arguments)
        await worker.wait_ready()
        return worker

    async def records(self, topic: str) -> list[TopicRecord]:
        """Everything on a topic."""
        return await self.reader.records(topic)

    async def results(self) -> list[dict[str, Any]]:
        """Every record of the results topic, as JSON."""
        return [json.loads(record.value or b"null") for record in await self.records(self.topics.results)]

    async def wait_results(self, count: int, *, deadline_seconds: float = 120) -> list[dict[str, Any]]:
        """Wait for that many results."""

        async def enough() -> list[dict[str, Any]]:
            results = await self.results()
            if len(results) >= count:
                return results
            await asyncio.sleep(LOOK_SECONDS)
            return []

        return await wait_until(enough, deadline_seconds=deadline_seconds, what=f"{count} results")

    async def wait_answers(self, *request_ids: str, deadline_seconds: float = 120) -> dict[str, dict[str, Any]]:
        """Wait for the results of these tasks; the last one of each by its request id."""

        async def answered() -> dict[str, dict[str, Any]]:
            by_id = {result["request_id"]: result for result in await self.results()}
            return {name: by_id[name] for name in request_ids} if by_id.keys() >= set(request_ids) else {}

        return await wait_until(answered, deadline_seconds=deadline_seconds, what=f"results of {request_ids}")

    async def committed(self) -> dict[int, int]:
        """Committed offsets of the standard lane, by partition."""
        return {
            partition: committed.offset
            for (topic, partition), committed in (await self.offsets.committed(self.group)).items()
            if topic == self.topics.tasks
        }

    async def wait_committed(self, expected: Mapping[int, int], *, deadline_seconds: float = 60) -> None:
        """Wait until the standard lane has these committed offsets."""

        async def reached() -> bool:
            if await self.committed() == dict(expected):
                return True
            await asyncio.sleep(LOOK_SECONDS)
            return False

        await wait_until(reached, deadline_seconds=deadline_seconds, what=f"committed offsets {dict(expected)}")

    def stored_images(self) -> list[Path]:
        """Image files in the store."""
        return sorted(path for path in self.images.rglob("*") if path.suffix in {".png", ".jpg", ".webp"})


@asynccontextmanager
async def worker_bench(
    bootstrap_servers: str,
    folder: Path,
    *,
    model: str,
    partitions: int = 2,
    stand_in: bool = False,
    executed_engines: bool = False,
    retry_delays: tuple[str, ...] = (),
    topic_config: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[WorkerBench]:
    """A bench whose workers and engines have all ended afterwards; one retry topic for each delay.

    Engines are forked from a process that has imported them, unless they shall be `executed_engines` with a real model.
    """
    prefix = unique_name("t")
    topics = TopicNames(
        tasks=f"{prefix}-tasks",
        tasks_vip=f"{prefix}-tasks-vip",
        results=f"{prefix}-results",
        progress=f"{prefix}-progress",
        retry=tuple(f"{prefix}-retry-{number}" for number in range(len(retry_delays))),
        control=f"{prefix}-control",
        dead_letters=f"{prefix}-dlq",
        feedback=f"{prefix}-feedback",
    )
    await create_topics(
        bootstrap_servers,
        {
            topics.tasks: partitions,
            topics.tasks_vip: 1,
            topics.results: 1,
            topics.progress: 1,
            topics.control: 1,
            topics.dead_letters: 1,
            topics.feedback: 1,
            **dict.fromkeys(topics.retry, 2),
        },
        config={"max.message.bytes": "2097152", **topic_config},
    )
    bench = WorkerBench(
        bootstrap_servers=bootstrap_servers,
        folder=folder,
        model=model,
        topics=topics,
        group=f"{prefix}-group",
        engine_command=() if executed_engines else warm_engine(stand_in=stand_in),
        retry_delays=retry_delays,
    )
    try:
        yield bench
    finally:
        engines = [int(line["pid"]) for worker in bench.workers for line in worker.events("engine_started")]
        for worker in bench.workers:
            worker.end()
        await asyncio.to_thread(bench.reader.close)
        await asyncio.to_thread(bench.offsets.close)
        await wait_until(
            lambda: not [pid for pid in engines if is_engine(pid)],
            deadline_seconds=10,
            what="engines to die with their agents",
        )


def is_engine(pid: int) -> bool:
    """Whether that process is a living engine."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "--socket-fd" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def task_body(request_id: str, prompt: str = "a lighthouse", **fields: Any) -> bytes:
    """A task as a foreign producer writes it; small and quick by default."""
    body = {"request_id": request_id, "prompt": prompt, "width": 64, "height": 64, "steps": 2, **fields}
    return json.dumps(body).encode()


async def wait_for_step(bench: WorkerBench, request_id: str, *, deadline_seconds: float = 60) -> None:
    """Wait until the task is being generated, according to its progress."""

    async def stepping() -> bool:
        events = [json.loads(record.value or b"{}") for record in await bench.records(bench.topics.progress)]
        if any(event["request_id"] == request_id and event.get("step") for event in events):
            return True
        await asyncio.sleep(LOOK_SECONDS)
        return False

    await wait_until(stepping, deadline_seconds=deadline_seconds, what=f"a step of {request_id}")
