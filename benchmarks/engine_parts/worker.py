"""Images an hour of the whole worker under a backlog, beside the serial script: draw, save, send, commit, next.

The worker's lane, ledger, task flow, store and engine are real. The broker's side is the tests' model of it: a topic
and a consumer group in this process, and acknowledgements after a fixed time, because a machine with a GPU need not
have Kafka. The script uses the plain pipeline, and its acknowledgements take as long.
"""

import asyncio
import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final, cast

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord
from report import Cell

from engine_parts import ours, plain
from engine_parts.ground import PROMPT, Ground, free_device_memory
from engine_parts.readings import Readings
from engine_parts.speed import Case
from fluxpool_contract.settings import StorageSettings, WorkerSettings
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.storage import open_object_store
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import LaneConsumer
from fluxpool_worker.agent.engine.client import EngineClient
from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.agent.engine.slots import EngineSlots
from fluxpool_worker.agent.service import TASKS_IN_FLIGHT
from fluxpool_worker.agent.task.cancellations import Cancellations
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import OutgoingRecord, ReliablePublisher
from fluxpool_worker.agent.task.task_flow import TaskFlow
from fluxpool_worker.agent.wiring import ENGINE_JOBS
from kit.models.modelled_kafka import Link, ModelConsumer, ModelGroup

ACKNOWLEDGED_SECONDS: Final = 0.005
"""From a record or commit to its answer, as brokers of one data centre take with acks=all."""
TASKS: Final = 14
SERIAL_TASKS: Final = 3
WARM_UP_TASKS: Final = 2
PARTITION: Final = TopicPartition("tasks", 0)
DEVICE_PHASES: Final = ("text_encode", "denoise", "vae", "copy")


class _WatchedEngine(EngineClient):
    """Notes when the device began and ended each job."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begun: list[float] = []
        self.ended: list[float] = []

    async def submit(
        self,
        inputs: Any,
        *,
        on_started: Callable[[], None],
        on_step: Callable[[int, int], None],
        on_device_free: Callable[[], None],
    ) -> EngineJob:
        """As `EngineClient`."""

        def started() -> None:
            self.begun.append(time.perf_counter())
            on_started()

        def device_free() -> None:
            self.ended.append(time.perf_counter())
            on_device_free()

        return await super().submit(inputs, on_started=started, on_step=on_step, on_device_free=device_free)


class _PublishedRecords:
    """Both publishers: keeps results, answers after the fixed time, drops progress."""

    def __init__(self, results_topic: str, *, expected: int) -> None:
        self.results: list[dict[str, Any]] = []
        self.unexpected: list[str] = []
        """Retries and dead letters."""
        self.is_complete = asyncio.Event()
        self._topic, self._expected = results_topic, expected

    async def publish(self, record: OutgoingRecord, *, refusable: bool = False) -> None:  # noqa: ARG002 - as the real one
        """Return when the record was acknowledged."""
        await asyncio.sleep(ACKNOWLEDGED_SECONDS)
        if record.topic == self._topic:
            self.results.append(json.loads(record.value or b"{}"))
        else:
            self.unexpected.append(f"a record for {record.topic} with the headers {record.headers}")
        if self.unexpected or len(self.results) == self._expected:
            self.is_complete.set()

    def report(self, *_event: object, **_fields: object) -> None:
        """Progress may get lost."""


class _NoMetrics:
    def count_end(self, outcome: str, seconds: float) -> None:
        """A record left the worker."""

    def count_refused(self, topic: str) -> None:
        """A topic refused a record."""

    def observe_phases(self, timings_ms: Mapping[str, float]) -> None:
        """A generation has its images."""


class _Waiting(LaneEvents):
    def __init__(self) -> None:
        self.record_waiting = asyncio.Event()

    def on_record_waiting(self) -> None:
        self.record_waiting.set()


async def measure(ground: Ground) -> list[dict[str, Cell]]:
    """A row of the worker and one of the script."""
    case = Case(side=ground.side, steps=ground.steps[0])
    return [await _worker(ground, case), await _serial(ground, case)]


async def _worker(ground: Ground, case: Case) -> dict[str, Cell]:
    images = ground.folder / f"worker-images-{os.getpid()}"
    settings = WorkerSettings.model_validate(
        {
            "kafka": {"bootstrap_servers": ["stand-in:9092"]},
            "storage": StorageSettings(url=images.as_uri()),
            "lanes": [{"name": "standard", "topic": PARTITION.topic}],
        }
    )
    engine = _WatchedEngine(ours.spec(ground, ground.dtypes[0]), limits=ours.limits())
    published = _PublishedRecords(settings.topics.results, expected=TASKS)
    with Readings() as readings:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(engine.run())
            await engine.wait_ready()
            serving = group.create_task(_serve(settings, engine=engine, published=published, case=case))
            await published.is_complete.wait()
            serving.cancel()
            await engine.stop()
            await running
        measured = readings.since(engine.begun[WARM_UP_TASKS] if not published.unexpected else 0.0)
    assert not published.unexpected, published.unexpected[0]
    failed = [result for result in published.results if result["status"] != "success"]
    assert not failed, failed[0]
    hot = sorted(published.results, key=lambda result: result["seed"])[WARM_UP_TASKS:]
    busy = sum(result["timings"].get(f"{phase}_ms", 0.0) for result in hot for phase in DEVICE_PHASES) / 1000
    span = engine.ended[-1] - engine.begun[WARM_UP_TASKS]
    stored = sum(1 for _ in images.rglob("*.png"))
    gaps = [
        1000 * (begun - ended)
        for begun, ended in zip(engine.begun[WARM_UP_TASKS + 1 :], engine.ended[WARM_UP_TASKS:], strict=False)
    ]
    return {
        "way": f"worker {ground.dtypes[0]}",
        "images_per_hour": 3600 * len(hot) / span,
        "device_idle_share": 1 - busy / span,
        "idle_p50_ms": statistics.median(gaps),
        "tasks": TASKS,
        "images_stored": stored,
        **{name: measured[name] for name in ("watts", "sm_mhz")},
    }


async def _serve(settings: WorkerSettings, *, engine: EngineClient, published: _PublishedRecords, case: Case) -> None:
    """Until cancelled: the worker between consumer and engine, as `wiring` connects it and `service` dispatches."""
    model = ModelGroup(
        PARTITION.topic, partitions=1, on_commit=lambda *_commit: None, on_removed=lambda _consumer: None
    )
    for number in range(TASKS):
        model.append(_record(case, number))
    holds, slots, events = Holds(limit_seconds=60.0), EngineSlots(jobs=ENGINE_JOBS), _Waiting()
    lane = LaneConsumer(
        name="standard",
        topic=PARTITION.topic,
        build_consumer=lambda: _SlowConsumer(model, Link()),
        ask_topic_id=_unknown_id,
        events=events,
        holds=holds,
        revoke_wait_seconds=settings.revoke_wait_seconds,
    )
    flow = TaskFlow(
        settings,
        identity=WorkerIdentity(worker="benchmark", pool=settings.pool),
        store=open_object_store(settings.storage),
        trust=TenantTrust(),
        engine=engine,
        slots=slots,
        publisher=cast("ReliablePublisher", published),
        progress=cast("ProgressPublisher", published),
        holds=holds,
        cancellations=Cancellations(),
        metrics=_NoMetrics(),
    )
    room = asyncio.Semaphore(TASKS_IN_FLIGHT)

    async def run_task(claimed: Any, slot: Any) -> None:
        with ExitStack() as held:
            held.callback(room.release)
            await flow.run(claimed, slot=slot, make_room=held.close)

    async with asyncio.TaskGroup() as group:
        group.create_task(lane.run())
        while True:
            await room.acquire()
            while True:
                events.record_waiting.clear()
                if lane.oldest_head_ms() is None:
                    await events.record_waiting.wait()
                    continue
                slot = await slots.acquire()
                claimed = lane.claim_next()
                if claimed is not None:
                    break
                slot.release()
            group.create_task(run_task(claimed, slot))


class _SlowConsumer(ModelConsumer):
    """Commits take the fixed time."""

    async def commit(self, offsets: Any) -> None:
        """As aiokafka's."""
        await asyncio.sleep(ACKNOWLEDGED_SECONDS)
        await super().commit(offsets)


async def _unknown_id() -> None:
    """The topic's id is never known."""


def _record(case: Case, number: int) -> ConsumerRecord:
    task = {
        "request_id": f"task-{number:04}",
        "prompt": f"{PROMPT}, {number}",
        "width": case.side,
        "height": case.side,
        "steps": case.steps,
        "seed": number,
    }
    value = json.dumps(task).encode()
    known = {
        "topic": PARTITION.topic,
        "partition": PARTITION.partition,
        "offset": number,
        "timestamp": int(time.time() * 1000),
        "timestamp_type": 0,
        "key": None,
        "value": value,
        "checksum": None,
        "serialized_key_size": -1,
        "serialized_value_size": len(value),
        "headers": (),
    }
    return ConsumerRecord(**{field.name: known.get(field.name) for field in dataclasses.fields(ConsumerRecord)})


async def _serial(ground: Ground, case: Case) -> dict[str, Cell]:
    folder = ground.folder / f"serial-images-{os.getpid()}"
    folder.mkdir()
    dtype = ground.plain_dtypes[0]
    with Readings() as readings:
        pipeline = plain.load(ground, dtype)
        seconds = []
        began = 0.0
        for number in itertools.count():
            if number == 1:  # the first one is warm-up
                began = time.perf_counter()
            if number > SERIAL_TASKS:
                break
            start = time.perf_counter()
            file = plain.draw(pipeline, case, seed=number)
            await asyncio.to_thread((folder / f"task-{number}.png").write_bytes, file)
            await asyncio.sleep(ACKNOWLEDGED_SECONDS)  # the result, flushed
            await asyncio.sleep(ACKNOWLEDGED_SECONDS)  # the commit
            seconds.append(time.perf_counter() - start)
        measured = readings.since(began)
    del pipeline
    free_device_memory()
    return {
        "way": f"script {dtype}",
        "images_per_hour": 3600 / statistics.fmean(seconds[1:]),
        "device_idle_share": None,
        "idle_p50_ms": None,
        "tasks": SERIAL_TASKS,
        "images_stored": len(seconds) - 1,
        **{name: measured[name] for name in ("watts", "sm_mhz")},
    }
