"""Hands tasks on from a retry topic when they are due; CPU only, in every agent.

Owns when a record of a retry topic goes back and where to: like a new task it goes to the member that will be free
first, because its key would bind it to one that may be busy for long. Loads are read only while a record is due or
soon will be. Knows nothing of what the task is: whatever is wrong with it, a worker finds out. One group serves a retry
topic for all pools that share it, so the record itself says where it belongs. It is published and acknowledged before
its offset is committed: a crash in between hands it on twice, and the second copy finds what the first one left.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.dead_letter import Disposition
from fluxpool_contract.headers import NOT_BEFORE, ORIGIN_TOPIC, Envelope, parse_envelope
from fluxpool_contract.problems import ErrorClass, ErrorCode, InvalidTaskError
from fluxpool_contract.retries import MAX_JITTER
from fluxpool_transport.faults import fault_point
from fluxpool_transport.partition_choice_demand import AHEAD_SECONDS, ChoiceOnDemand
from fluxpool_worker.agent.answers import Failure, due_record
from fluxpool_worker.agent.lane import LaneConsumer, PartitionLostError, Taken
from fluxpool_worker.agent.publisher import RecordPlace, RecordRefusedError, ReliablePublisher

LONGEST_NAP_SECONDS: Final = 30.0
"""Between two looks at heads that are not due: a clock may be set."""
AVERAGE_WORK: Final = 1.0
"""How large a task is, is in its body."""

_after_republish = fault_point("retry-after-republish")

log = structlog.get_logger(__name__)


class RetryScheduler:
    """Serves one retry topic; `lane.run()` and `choice.run()` must be running meanwhile."""

    def __init__(
        self,
        lane: LaneConsumer,
        *,
        wake: asyncio.Event,
        delay_seconds: float,
        home_topic: str,
        publisher: ReliablePublisher,
        choice: ChoiceOnDemand,
        dead_letter: Callable[[ConsumerRecord, Failure], Awaitable[None]],
        on_handed_on: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`home_topic` is for records that do not say where they belong; `clock` gives seconds since 1970."""
        self.lane = lane
        self._wake = wake
        self._delay_seconds = delay_seconds
        self._home_topic = home_topic
        self._publisher = publisher
        self._choice = choice
        self._dead_letter = dead_letter
        self._on_handed_on = on_handed_on
        self._clock = clock
        self._stopping = False

    def stop(self) -> None:
        """Make `run()` return when it has finished what it does."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Hand tasks on until `stop()`; raises `HoldExpiredError`."""
        while not self._stopping:
            self._wake.clear()
            heads = self.lane.waiting_heads()
            first = min(heads, key=self._due_seconds, default=None)
            nap = LONGEST_NAP_SECONDS
            if first is not None:
                due_in_seconds = self._due_seconds(first) - self._clock()
                if due_in_seconds <= 0:
                    await self._hand_on(self.lane.take_head(first))
                    continue
                nap = min(nap, self._nap_seconds(due_in_seconds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(nap):
                    await self._wake.wait()

    def _nap_seconds(self, due_in_seconds: float) -> float:
        """Until the head is due, or until loads must be read for it."""
        if due_in_seconds > AHEAD_SECONDS:
            return due_in_seconds - AHEAD_SECONDS
        self._choice.expect()
        return due_in_seconds

    def _due_seconds(self, head: ConsumerRecord) -> float:
        return due_seconds(head, delay_seconds=self._delay_seconds)

    async def _hand_on(self, taken: Taken) -> None:
        record = taken.record
        topic = origin_topic(record) or self._home_topic
        if topic == record.topic:
            # A header of somebody else's: the task would go round here for ever.
            topic = self._home_topic
        try:
            place = await self._send_back(record, topic)
        except RecordRefusedError as error:
            await self._dead_letter(record, _homeless(topic, error))
            place = None
        _after_republish()
        self._on_handed_on()
        log.info(
            "retry_handed_on",
            retry_topic=record.topic,
            topic=topic,
            partition=place.partition if place is not None else None,
            offset=record.offset,
        )
        try:
            await taken.lane.finish(taken)
        except PartitionLostError:
            log.info("retry_handed_on_twice", retry_topic=record.topic, offset=record.offset)

    async def _send_back(self, record: ConsumerRecord, topic: str) -> RecordPlace:
        await self._choice.ready()
        chooser = self._choice.chooser
        # Topics of other pools are not watched here: their partitions take turns.
        place = await self._publisher.publish(
            due_record(record, topic=topic),
            refusable=True,
            choose_partition=lambda partitions: chooser.choose(topic, partitions=partitions, work=AVERAGE_WORK),
        )
        if place.offset >= 0:
            chooser.acknowledged(topic, partition=place.partition, offset=place.offset, work=AVERAGE_WORK)
        return place


def due_seconds(record: ConsumerRecord, *, delay_seconds: float) -> float:
    """When a record of a retry topic goes back, seconds since 1970: as its header says, else when the delay is over.

    Never later than the topic's delay with all its jitter: those behind it would have to wait for it.
    """
    came_seconds = float(record.timestamp) / 1000
    not_before = _header_envelope(record, NOT_BEFORE).not_before
    if not_before is None:
        return came_seconds + delay_seconds
    return min(not_before.timestamp(), came_seconds + delay_seconds * (1 + MAX_JITTER))


def origin_topic(record: ConsumerRecord) -> str | None:
    """The topic that a record of a retry topic came from; None when it does not say."""
    return _header_envelope(record, ORIGIN_TOPIC).origin_topic


def _header_envelope(record: ConsumerRecord, header: str) -> Envelope:
    """What one header says; a malformed one says nothing here, and is refused where the task is decoded."""
    try:
        return parse_envelope([(name, value) for name, value in record.headers if name == header])
    except InvalidTaskError:
        return Envelope()


def _homeless(topic: str, error: RecordRefusedError) -> Failure:
    return Failure(
        error_class=ErrorClass.INFRA,
        code=ErrorCode.REFUSED_BY_TOPIC,
        disposition=Disposition.EXHAUSTED,
        message=f"the task was due again and cannot be sent back to topic {topic}: {error}",
    )
