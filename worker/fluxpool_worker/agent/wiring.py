"""Builds the parts of a worker from its settings and connects them; starts nothing. `service` runs them."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from aiokafka import TopicPartition

from fluxpool_contract.kafka import LedgerEntry, worker_client_id
from fluxpool_contract.settings import Lane, WorkerSettings
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.kafka import KafkaMetadata
from fluxpool_transport.lag import MemberlessOffsets
from fluxpool_transport.partitioner import IdleAwarePartitioner, LoadAwarePartitioner
from fluxpool_transport.storage import open_object_store
from fluxpool_transport.tenant_secret import tenant_keys_of
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.connections import (
    build_consumer,
    build_control_reader,
    build_progress_producer,
    build_reliable_producer,
    build_retry_reader,
)
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import LaneConsumer
from fluxpool_worker.agent.engine.client import EngineClient, EngineLimits
from fluxpool_worker.agent.engine.slots import EngineSlots
from fluxpool_worker.agent.metrics import WorkerMetrics
from fluxpool_worker.agent.retry.relay_duty import RelayDuty
from fluxpool_worker.agent.retry.retry_relay import RetryRelay
from fluxpool_worker.agent.task.cancellations import Cancellations, ControlListener
from fluxpool_worker.agent.task.holds import HoldCause, Holds
from fluxpool_worker.agent.task.outcome import inherited_crashes
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import ReliablePublisher
from fluxpool_worker.agent.task.task_flow import TaskFlow
from fluxpool_worker.engine.protocol import Device, EngineSpec, Offload

ENGINE_JOBS: Final = 2
"""One on the device, one that is queued there, so that the device never waits for Kafka or the store."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _LaneEvents(LaneEvents):
    """Passes on what one lane reports."""

    parts: "WorkerParts"
    lane: str
    duty: RelayDuty | None
    """Of the first lane."""

    def on_record_waiting(self) -> None:
        self.parts.record_waiting.set()

    def on_records_lost(self, count: int) -> None:
        self.parts.metrics.records_lost.labels(self.lane).inc(count)

    def on_consumer_failed(self) -> None:
        self.parts.metrics.lane_failures.labels(self.lane).inc()

    def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        if self.duty is not None:
            self.duty.assigned(partitions)

    async def on_revoked(self) -> None:
        if self.duty is not None:
            await self.duty.revoked()

    def crashes_of(self, entry: LedgerEntry) -> int:
        return self.parts.count_crashes(entry)


class WorkerParts:
    """What runs in a worker."""

    def __init__(self, settings: WorkerSettings, *, worker_name: str, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._client_id = worker_client_id(worker_name)
        self._started_at = int(clock.time())
        self.identity = WorkerIdentity(worker=worker_name, pool=settings.pool)
        self.record_waiting = asyncio.Event()
        """Set when a lane has a record to claim."""
        self.holds = Holds(
            limit_seconds=settings.infra_hold_limit_seconds,
            # A shorter outage removes no member from a group.
            outage_seconds=settings.session_timeout_seconds,
            clock=clock.monotonic,
        )
        self.engine = _engine(settings, clock=clock)
        self.slots = EngineSlots(jobs=ENGINE_JOBS)
        self.publisher = ReliablePublisher(self._client(build_reliable_producer), holds=self.holds)
        self.progress = ProgressPublisher(
            self._client(build_progress_producer), identity=self.identity, topics=settings.topics, clock=clock
        )
        self.metrics = WorkerMetrics(engine=self.engine, publisher=self.publisher, holds=self.holds)
        cancellations = Cancellations(clock=clock.now)
        self.control = ControlListener(
            settings.topics.control, build_consumer=self._client(build_control_reader), cancellations=cancellations
        )
        self.flow = TaskFlow(
            settings,
            identity=self.identity,
            store=open_object_store(settings.storage),
            trust=TenantTrust(
                shared=tenant_keys_of(settings.tenant_secret_file),
                foreign_topics=frozenset(settings.foreign_tenant_topics),
            ),
            engine=self.engine,
            slots=self.slots,
            publisher=self.publisher,
            progress=self.progress,
            holds=self.holds,
            cancellations=cancellations,
            metrics=self.metrics,
            clock=clock,
        )
        self._metadata = KafkaMetadata(settings.kafka, client_id=self._client_id)
        self._duty = RelayDuty()
        self.metrics.relays_retries.set_function(lambda: self._duty.is_held)
        self.lanes = [self._lane(lane) for lane in settings.lanes]
        self.partitioner = IdleAwarePartitioner(
            LoadAwarePartitioner(settings.kafka, {settings.group_of(lane): lane.topic for lane in settings.lanes})
        )
        self.relay = self._relay()

    def _client(self, build: Callable[..., T]) -> Callable[..., T]:
        return partial(build, self._settings, client_id=self._client_id)

    def _relay(self) -> RetryRelay:
        settings = self._settings
        return RetryRelay(
            settings,
            duty=self._duty,
            build_reader=self._client(build_retry_reader),
            offsets=MemberlessOffsets(
                settings.kafka,
                client_id=f"{self._client_id}-retry",
                retention=timedelta(days=settings.offset_retention_days),
            ),
            ask_topic_id=self._metadata.topic_id,
            publisher=self.publisher,
            choice=self.partitioner,
            fail=self.flow.fail,
            on_relayed=lambda topic: self.metrics.retries_relayed.labels(topic).inc(),
            clock=self._clock,
        )

    def _lane(self, lane: Lane) -> LaneConsumer:
        settings = self._settings
        return LaneConsumer(
            name=lane.name,
            topic=lane.topic,
            build_consumer=partial(self._client(build_consumer), group=settings.group_of(lane)),
            ask_topic_id=partial(self._metadata.topic_id, lane.topic),
            events=_LaneEvents(self, lane.name, self._duty if lane == settings.lanes[0] else None),
            holds=self.holds,
            revoke_wait_seconds=settings.revoke_wait_seconds,
            clock=self._clock,
            model_family=lambda: self.identity.family_name,
        )

    def count_crashes(self, entry: LedgerEntry) -> int:
        """How many crashes an entry of a former owner's ledger means."""
        since = self.holds.seconds_since_outage(HoldCause.KAFKA)
        return inherited_crashes(
            entry,
            worker=self.identity.worker,
            worker_started_at=self._started_at,
            outage_ended_at=None if since is None else self._clock.time() - since,
        )


def _engine(settings: WorkerSettings, *, clock: Clock) -> EngineClient:
    model = settings.model
    return EngineClient(
        EngineSpec(
            model=model.id,
            revision=model.revision,
            device=Device(model.device.value),
            transformer_dtype=model.transformer_dtype.value,
            encoder_dtype=model.encoder_dtype.value,
            offline=model.offline,
            lora_folder=None if model.lora_folder is None else str(model.lora_folder),
            offload=Offload(model.offload.value),
            qualities=model.quality.allowed,
            default_quality=model.quality.default,
        ),
        command=settings.engine_command,
        limits=EngineLimits(
            job=settings.task_hard_limit_seconds,
            silence_soft=settings.step_soft_limit_seconds,
            silence_hard=settings.step_hard_limit_seconds,
            load=settings.engine_load_limit_seconds,
        ),
        clock=clock,
    )
