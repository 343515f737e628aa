"""Reads previews from the progress topic for `previews`: in each process of the gateway, while any is watched there.

The store has no previews, so that it does not grow by them; a process that begins to read takes the next ones.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import ProgressEvent, ProgressType, parse_envelope
from fluxpool_contract.problems import InvalidTaskError
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.live.previews import TaskPreviews
from fluxpool_gateway.projection.projected_records import task_topics
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.task_state import TaskKey
from fluxpool_transport.kafka import UndecodableRecord, aiokafka_options, stop_consumer
from fluxpool_transport.process import Backoff

CLIENT_ID: Final = "fluxpool-gateway-previews"
POLL_SECONDS: Final = 0.5
IDLE_SECONDS: Final = 30.0
"""The next watcher, mostly of the next task, need not wait for a new consumer."""
_MAX_EVENT_BYTES: Final = 64 * 1024
"""Of an event with the largest preview are 33 KiB."""

logger = structlog.stdlib.get_logger(__name__)


class PreviewReader:
    """The reader of one process."""

    def __init__(
        self,
        previews: TaskPreviews,
        *,
        topics: TopicNames,
        trust: TenantTrust,
        build_consumer: Callable[[], AIOKafkaConsumer],
    ) -> None:
        self._previews = previews
        # A worker passes the tenant of the task on, so that the task's writer may have named it.
        self._named_in = (topics.progress, *task_topics(topics))
        self._trust = trust
        self._build_consumer = build_consumer

    async def run(self) -> None:
        """Read until cancelled, through outages, while anyone watches."""
        backoff = Backoff(initial_seconds=1, maximum_seconds=10)
        while True:
            await self._previews.wait_watched()
            consumer = self._build_consumer()
            try:
                await consumer.start()
                await self._read(consumer)
                backoff.reset()
            except KafkaError as error:
                logger.warning("previews_interrupted", reason=repr(error))
                await backoff.sleep()
            finally:
                await stop_consumer(consumer)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        clock = asyncio.get_running_loop().time
        watched_at = clock()
        while clock() - watched_at < IDLE_SECONDS:
            for records in (await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000))).values():
                for record in records:
                    self.take(record)
            if self._previews.is_watched:
                watched_at = clock()

    def take(self, record: ConsumerRecord) -> None:
        """Show the preview in a record to those who watch its task, and keep it; what holds none is passed over."""
        value = record.value
        # Before it is parsed: most records are steps.
        if (
            isinstance(record, UndecodableRecord)
            or not value
            or len(value) > _MAX_EVENT_BYTES
            or b'"preview"' not in value
        ):
            return
        try:
            event = ProgressEvent.model_validate_json(value)
            envelope = parse_envelope(record.headers)
        except (ValidationError, InvalidTaskError):
            return  # the projection reports it
        if event.type != ProgressType.PREVIEW or event.preview is None:
            return
        tenant = self._trust.owner(envelope, topics=self._named_in, request_id=event.request_id)
        self._previews.show(
            TaskKey(event.request_id, tenant),
            event.preview,
            attempt=event.attempt,
            step=event.step,
            total_steps=event.total_steps,
        )


def open_preview_reader(settings: GatewaySettings, previews: TaskPreviews, trust: TenantTrust) -> PreviewReader:
    """The reader of a gateway's process; its consumers are in no group and begin at the end of the topic."""

    def build_consumer() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            settings.topics.progress,
            **aiokafka_options(settings.kafka, client_id=CLIENT_ID),
            enable_auto_commit=False,
            auto_offset_reset="latest",
        )

    return PreviewReader(
        previews,
        topics=settings.topics,
        trust=trust,
        build_consumer=build_consumer,
    )
