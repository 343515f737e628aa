"""Progress events: sent when possible, dropped when not; a task never waits for them.

They have a producer of their own, so that a lost event cannot break the sequence of the idempotent one.
"""

import asyncio
import base64
import contextlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import DecodedTask, Preview, ProgressEvent, ProgressType
from fluxpool_transport.process import Backoff
from fluxpool_worker.agent.clock import SYSTEM_CLOCK, Clock
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity, progress_record
from fluxpool_worker.agent.task.publisher import OutgoingRecord, close_producer
from fluxpool_worker.engine import protocol

MAX_WAITING: Final = 256
PROGRESS_SECONDS: Final = 0.5
"""Least time between two events of a kind of a task."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class ProgressPublisher:
    """Sends what it can and drops the oldest when it cannot keep up; `run()` must be running meanwhile."""

    build_producer: Callable[[], AIOKafkaProducer]
    _: KW_ONLY
    identity: WorkerIdentity
    topics: TopicNames
    clock: Clock = SYSTEM_CLOCK
    _waiting: asyncio.Queue[OutgoingRecord] = field(default_factory=partial(asyncio.Queue, MAX_WAITING), init=False)

    def report(
        self,
        decoded: DecodedTask,
        kind: ProgressType,
        *,
        attempt: int,
        step: int | None = None,
        total_steps: int | None = None,
        preview: Preview | None = None,
    ) -> None:
        """Send an event soon, or never."""
        event = ProgressEvent(
            request_id=decoded.task.request_id,
            type=kind,
            attempt=attempt,
            step=step,
            total_steps=total_steps,
            preview=preview,
            at=self.clock.now(),
            worker=self.identity.worker,
            pool=self.identity.pool,
        )
        if self._waiting.full():
            # The oldest: of a task's steps only the latest is worth showing.
            self._waiting.get_nowait()
        self._waiting.put_nowait(
            progress_record(event, envelope=decoded.envelope, source=self.identity.source, topics=self.topics)
        )

    async def run(self) -> None:
        """Send until cancelled."""
        backoff = Backoff(initial_seconds=1, maximum_seconds=10)
        while True:
            producer = self.build_producer()
            try:
                await producer.start()
                backoff.reset()
                while True:
                    await self._send(producer, await self._waiting.get())
            except KafkaError as error:
                log.info("progress_interrupted", error=repr(error))
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    await close_producer(producer)
            await backoff.sleep()

    async def _send(self, producer: AIOKafkaProducer, record: OutgoingRecord) -> None:
        try:
            sent = await producer.send(record.topic, record.value, key=record.key, headers=record.headers)
        except (MessageSizeTooLargeError, ValueError, TypeError, AssertionError) as error:
            log.info("progress_dropped", topic=record.topic, error=repr(error))
        else:
            # Its ack is not awaited: the next event matters more than the fate of this one. Its exception is
            # read, or asyncio would log it.
            sent.add_done_callback(lambda done: done.cancelled() or done.exception())


@dataclass(slots=True, eq=False)
class AttemptProgress:
    """The events of one attempt, as many as readers can use."""

    publisher: ProgressPublisher
    decoded: DecodedTask
    _: KW_ONLY
    attempt: int
    clock: Clock
    _step_at: float = field(default=float("-inf"), init=False)
    _preview_at: float = field(default=float("-inf"), init=False)

    def report_started(self) -> None:
        """The device begins."""
        self.publisher.report(self.decoded, ProgressType.STARTED, attempt=self.attempt)

    def report_step(self, step: int, total_steps: int) -> None:
        """So many steps are done."""
        now = self.clock.monotonic()
        if now - self._step_at >= PROGRESS_SECONDS or step == total_steps:
            self._step_at = now
            self.publisher.report(
                self.decoded, ProgressType.STEP, attempt=self.attempt, step=step, total_steps=total_steps
            )

    def report_preview(self, preview: protocol.Preview) -> None:
        """What the image looks like."""
        now = self.clock.monotonic()
        if now - self._preview_at >= PROGRESS_SECONDS:
            self._preview_at = now
            self.publisher.report(
                self.decoded,
                ProgressType.PREVIEW,
                attempt=self.attempt,
                step=preview.step,
                total_steps=preview.total_steps,
                preview=Preview(
                    content_type="image/webp",
                    data=base64.b64encode(preview.payload).decode(),
                    index=preview.index,
                ),
            )
