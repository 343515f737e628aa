"""Hands tasks on from a retry topic when they are due; CPU only, in every agent.

Owns when a record of a retry topic goes back and where to. Knows nothing of what the task is: whatever is wrong with
it, a worker finds out. One group serves a retry topic for all pools that share it, so the record itself says where it
belongs. It is published and acknowledged before its offset is committed: a crash in between hands it on twice, and the
second copy finds what the first one left.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_transport.faults import fault_point
from fluxpool_worker.agent.answers import Failure, due_record
from fluxpool_worker.agent.lane import LaneConsumer, PartitionLostError, Taken
from fluxpool_worker.agent.publisher import RecordRefusedError, ReliablePublisher

LONGEST_NAP_SECONDS: Final = 30.0
"""Between two looks at heads that are not due: a clock may be set."""

_after_republish = fault_point("retry-after-republish")

log = structlog.get_logger(__name__)


class RetryScheduler:
    """Serves one retry topic; `lane.run()` must be running meanwhile."""

    def __init__(
        self,
        lane: LaneConsumer,
        *,
        wake: asyncio.Event,
        delay_seconds: float,
        home_topic: str,
        publisher: ReliablePublisher,
        dead_letter: Callable[[ConsumerRecord, Failure], "asyncio.Future[None]"],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`home_topic` is for records that do not say where they belong; `clock` gives seconds since 1970."""
        self.lane = lane
        self._wake = wake
        self._delay_seconds = delay_seconds
        self._home_topic = home_topic
        self._publisher = publisher
        self._dead_letter = dead_letter
        self._clock = clock

    async def run(self) -> None:
        """Hand tasks on until cancelled."""
        while True:
            self._wake.clear()
            heads = self.lane.waiting_heads()
            due_at = {head: due_seconds(head, delay_seconds=self._delay_seconds) for head in heads}
            now = self._clock()
            due = [head for head in heads if due_at[head] <= now]
            if due:
                await self._hand_on(self.lane.take_head(min(due, key=due_at.__getitem__)))
                continue
            nap = min([due_at[head] - now for head in heads] + [LONGEST_NAP_SECONDS])
            try:
                async with asyncio.timeout(nap):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _hand_on(self, taken: Taken) -> None:
        record = taken.record
        topic = origin_topic(record) or self._home_topic
        try:
            await self._publisher.publish(due_record(record, topic=topic), refusable=True)
        except RecordRefusedError as error:
            await self._dead_letter(record, _homeless(topic, error))
        _after_republish()
        log.info("retry_handed_on", retry_topic=record.topic, topic=topic, offset=record.offset)
        try:
            await taken.lane.finish(taken)
        except PartitionLostError:
            log.info("retry_handed_on_twice", retry_topic=record.topic, offset=record.offset)
