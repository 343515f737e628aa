"""The real `TaskFlow` with a store in a folder; scripts replace engine, lane and topics.

Records what was published and committed; knows no expectations of tests.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from aiokafka.structs import ConsumerRecord, RecordMetadata, TopicPartition

from fluxpool_contract.header_names import ATTEMPT, DEADLINE
from fluxpool_contract.messages import derived
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.headers import Envelope, format_time
from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.storage.object_store import open_object_store
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, LaneConsumer
from fluxpool_worker.agent.engine.client import EngineClient, GenerationError
from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.agent.engine.slots import EngineSlots
from fluxpool_worker.agent.task.cancellations import Cancellations
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.outgoing_records import Failure, WorkerIdentity
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import (
    OutgoingRecord,
    RecordRefusedError,
    ReliablePublisher,
)
from fluxpool_worker.agent.task.task_flow import TaskFlow
from fluxpool_worker.engine.protocol import EncodedImage, FailureKind, Generated, GenerationInputs

REQUEST_ID = "task-1"
TASK: dict[str, Any] = {"request_id": REQUEST_ID, "prompt": "a city", "metadata": {"owner": "tests"}}
MAX_ATTEMPTS = 3


def task_record(
    value: bytes | None = json.dumps(TASK).encode(),
    *,
    key: bytes | None = None,
    headers: Collection[tuple[str, bytes | None]] = (),
    timestamp: int = 1_775_383_200_000,
) -> ConsumerRecord:
    """A record of the first lane."""
    return ConsumerRecord(
        topic="flux-generation-tasks",
        partition=0,
        offset=7,
        timestamp=timestamp,
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=-1 if key is None else len(key),
        serialized_value_size=-1 if value is None else len(value),
        headers=tuple(headers),
    )


def attempt(number: int) -> tuple[str, bytes]:
    """The header of a task's attempt."""
    return (ATTEMPT, str(number).encode())


def deadline_passed() -> tuple[str, bytes]:
    """The header of a task whose deadline has passed."""
    return (DEADLINE, format_time(datetime.now(UTC) - timedelta(minutes=1)).encode())


def _no_picture(inputs: GenerationInputs) -> EncodedImage:
    return EncodedImage(
        index=0,
        seed=inputs.seed,
        width=inputs.width,
        height=inputs.height,
        format="png",
        content_type="image/png",
        payload=b"image",
    )


class ScriptedEngine:
    """An engine whose jobs fail or succeed at once."""

    def __init__(self) -> None:
        self.fails = True
        self.jobs = 0
        self.inputs: GenerationInputs | None = None
        """Inputs of the last job."""
        self.encode: Callable[[GenerationInputs], EncodedImage] = _no_picture
        """Makes the image of a job that does not fail."""

    async def submit(
        self,
        inputs: GenerationInputs,
        *,
        on_started: Callable[[], None],
        on_step: Callable[[int, int], None],
        on_device_free: Callable[[], None],
    ) -> EngineJob:
        self.jobs += 1
        self.inputs = inputs
        job = EngineJob(
            job_id=self.jobs,
            inputs=inputs,
            on_started=on_started,
            on_step=on_step,
            on_device_free=on_device_free,
            result=asyncio.get_running_loop().create_future(),
        )
        job.free_device()
        if self.fails:
            job.result.set_exception(GenerationError(FailureKind.ERROR, "told to fail"))
        else:
            image = self.encode(inputs)
            job.result.set_result(Generated(job.job_id, (image,), {"denoise": 1.0}))
        return job

    def cancel(self, _job: EngineJob) -> None:
        """Does nothing: every job has already ended."""


class ScriptedTopics:
    """Records what is published, and refuses records on request."""

    def __init__(self) -> None:
        self.records: list[OutgoingRecord] = []
        self.refuses: Callable[[OutgoingRecord], bool] = lambda _record: False

    async def publish(self, record: OutgoingRecord, **_options: object) -> RecordMetadata:
        if self.refuses(record):
            raise RecordRefusedError(f"topic {record.topic}: refused on request")
        self.records.append(record)
        partition = TopicPartition(record.topic, 0)
        return RecordMetadata(record.topic, 0, partition, len(self.records) - 1, None, 0, 0)

    def report(self, *_event: object, **_fields: object) -> None:
        """Ignore progress."""


@dataclass(slots=True)
class ScriptedLane:
    """The part of a lane that a task uses."""

    name: str = "standard"
    ends: list[str] = field(default_factory=list)

    async def record(self, _taken: ClaimedRecord, _entry: object) -> None:
        self.ends.append("recorded")

    def mark_generated(self, _taken: ClaimedRecord) -> None:
        self.ends.append("generated")

    async def finish(self, _taken: ClaimedRecord) -> None:
        self.ends.append("finished")

    async def release(self, _taken: ClaimedRecord) -> None:
        self.ends.append("released")


class FlowBench:
    """One worker's `TaskFlow`."""

    def __init__(
        self, folder: Path, *, hold_limit_seconds: float = 60, trust: TenantTrust | None = None, **changes: Any
    ) -> None:
        """`changes` are settings."""
        self.folder = folder
        self.settings = WorkerSettings.model_validate(
            {
                "kafka": {"bootstrap_servers": ["kafka:9092"]},
                "storage": {"url": folder.as_uri()},
                "max_attempts": MAX_ATTEMPTS,
                **changes,
            }
        )
        self.engine = ScriptedEngine()
        self.topics = ScriptedTopics()
        self.lane = ScriptedLane()
        self.cancellations = Cancellations()
        self.outcomes: list[str] = []
        self.refused_topics: list[str] = []
        self.phases_ms: list[dict[str, float]] = []
        self.objects = open_object_store(self.settings.storage)
        self._slots = EngineSlots(jobs=2)
        self._holds = Holds(limit_seconds=hold_limit_seconds)
        self._flow = TaskFlow(
            self.settings,
            identity=WorkerIdentity(worker="worker-1", pool=self.settings.pool),
            store=self.objects,
            trust=trust or TenantTrust(foreign_topics=frozenset(self.settings.foreign_tenant_topics)),
            engine=cast("EngineClient", self.engine),
            slots=self._slots,
            publisher=cast("ReliablePublisher", self.topics),
            progress=cast("ProgressPublisher", self.topics),
            holds=self._holds,
            cancellations=self.cancellations,
            metrics=self,
        )

    async def run(self, record: ConsumerRecord) -> None:
        """Process the record to its end."""
        taken = ClaimedRecord(lane=cast("LaneConsumer", self.lane), record=record)
        await self._flow.run(taken, slot=await self._slots.acquire())

    async def probe_signing(self) -> None:
        """As at a worker's start."""
        await self._flow.store.signing.probe()

    @property
    def held_by(self) -> set[str]:
        """What tasks wait for."""
        return {str(cause) for cause in self._holds.causes}

    async def fail(self, record: ConsumerRecord, failure: Failure) -> None:
        """End a record that cannot leave its retry topic."""
        await self._flow.fail(record, failure)

    def count_end(self, outcome: str, _seconds: float) -> None:
        """Record how a record ended."""
        self.outcomes.append(outcome)

    def count_refused(self, topic: str) -> None:
        """Record a topic that refused even the shortest record."""
        self.refused_topics.append(topic)

    def observe_phases(self, timings_ms: Mapping[str, float]) -> None:
        """Note where the time of a generation went."""
        self.phases_ms.append(dict(timings_ms))

    def cancel(self) -> None:
        """Receive a cancel command for the task."""
        command = CancelCommand(request_id=REQUEST_ID, at=datetime.now(UTC))
        self.cancellations.learn(task_record(command.model_dump_json().encode()))

    def store(self, key: str, content: bytes) -> None:
        """Another process has written an object."""
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def files(self) -> set[str]:
        """Keys of all objects in the store."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @property
    def results(self) -> list[dict[str, Any]]:
        """Values of the results topic."""
        return [json.loads(record.value or b"") for record in self._on(self.settings.topics.results)]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """Dead letters, from the headers of their topic."""
        return [DeadLetter.from_headers(record.headers) for record in self._on(self.settings.topics.dead_letters)]

    @property
    def retries(self) -> list[OutgoingRecord]:
        """Records of retry topics."""
        return [record for record in self.topics.records if record.topic in self.settings.topics.retry]

    def _on(self, topic: str) -> list[OutgoingRecord]:
        return [record for record in self.topics.records if record.topic == topic]


def claim_key() -> str:
    """Object key of the task's claim."""
    return derived.claim_key(Envelope().tenant, REQUEST_ID)


def prefix_of(record: ConsumerRecord) -> str:
    """Folder of the task's objects."""
    return derived.object_prefix(Envelope().tenant, derived.first_seen(Envelope(), record.timestamp), REQUEST_ID)
