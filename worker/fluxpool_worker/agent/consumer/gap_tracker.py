"""Gaps in the log of a lane: offsets that its consumer passed over, and which of their records are lost.

`FetchGaps` (pure) knows what was seen of one partition within one assignment. `GapTracker` asks where the log begins,
only where there is a gap and without keeping the lane from polling, and logs each lost range once. The consumer itself
continues at the beginning of the log in silence.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from fluxpool_transport.process import Backoff
from fluxpool_worker.agent.consumer.events import LaneEvents

ASK_DEADLINE_SECONDS: Final = 10.0


@dataclass(slots=True)
class FetchGaps:
    """Offsets that were passed over in one partition's log.

    Most are transaction markers, aborted records or what compaction took: only where the log now begins tells whether
    records are lost.
    """

    gaps: list[range] = field(default_factory=list)
    """Passed over, and not explained yet; to be explained only while the start is known."""
    has_start: bool = False
    """Whether this assignment is loaded; before that, what the consumer fetches is not looked at."""
    reached: int | None = None
    """One past the last record seen in this assignment, or the position; None before the first."""
    _low_watermark: int | None = None

    def set_start(self, low_watermark: int | None) -> None:
        """Begin an assignment: the consumer returns to what the group committed.

        Everything below `low_watermark` is done, or in flight here; None when the group has no offset yet. What a
        former assignment passed over above it is seen again, and explained then.
        """
        self.has_start, self.reached, self._low_watermark = True, None, low_watermark
        below = [] if low_watermark is None else [gap for gap in self.gaps if gap.start < low_watermark]
        self.gaps = [range(gap.start, min(gap.stop, low_watermark or 0)) for gap in below]

    def goes_back(self, offset: int) -> bool:
        """Whether a record or position at that offset is one that a log which only grows could not show."""
        return self.reached is not None and offset < self.reached

    def see(self, offset: int, *, next_offset: int) -> None:
        """A record at that offset, or the position: then both are the same."""
        expected = self._low_watermark if self.reached is None else max(self.reached, self._low_watermark or 0)
        if expected is not None and offset > expected:
            self.gaps.append(range(expected, offset))
        self.reached = next_offset

    def explain(self, asked: list[range], *, log_start: int) -> list[range]:
        """The offsets within gaps that are gone from the log, of those that are still open; they are closed now.

        Retention or a DeleteRecords request removes them. An upper bound: markers have offsets too.
        """
        # A new assignment may have cut or closed gaps while the start of the log was requested.
        known = [gap for gap in asked if gap in self.gaps]
        self.gaps = [gap for gap in self.gaps if gap not in known]
        return [lost for gap in known if (lost := range(gap.start, min(gap.stop, log_start)))]


class GapTracker:
    """What a lane's consumer passed over."""

    def __init__(self, *, events: LaneEvents, log: FilteringBoundLogger) -> None:
        """`log` names the lane."""
        self._events = events
        self._backoff = Backoff(initial_seconds=1.0, maximum_seconds=5.0)
        self._log = log
        self._fetched: dict[TopicPartition, FetchGaps] = {}
        self._unanswered: set[TopicPartition] = set()
        self._gap = asyncio.Event()

    def assign(self, assigned: Collection[TopicPartition]) -> None:
        """Begin a new assignment. Must not await."""
        self._fetched = {partition: self._fetched.get(partition, FetchGaps()) for partition in assigned}
        self._unanswered.clear()
        for fetched in self._fetched.values():
            fetched.has_start = False

    def set_start(self, partition: TopicPartition, low_watermark: int | None) -> None:
        """Say where the partition should begin; the contract is that of `FetchGaps.set_start`."""
        self._fetched[partition].set_start(low_watermark)
        self._gap.set()

    def reset(self, partition: TopicPartition) -> None:
        """Forget what was seen of the partition in this assignment and before."""
        self._fetched[partition] = FetchGaps()

    def goes_back(self, partition: TopicPartition, offset: int) -> bool:
        """Whether a record or position at that offset shows that the log is not the one that was read so far."""
        return self._fetched[partition].goes_back(offset)

    def see(self, partition: TopicPartition, offset: int, *, next_offset: int) -> None:
        """A record, or the position, where both offsets are the same."""
        fetched = self._fetched[partition]
        fetched.see(offset, next_offset=next_offset)
        if fetched.gaps:
            self._gap.set()

    def may_pass(self, partition: TopicPartition) -> bool:
        """Whether the position may be committed: what lies before it is explained, or could not be."""
        fetched = self._fetched[partition]
        return fetched.has_start and (not fetched.gaps or partition in self._unanswered)

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """Explain gaps; never returns."""
        while True:
            await self._gap.wait()
            # Before the gaps are read: one that is seen during the request sets the event again.
            self._gap.clear()
            asked = {
                partition: list(fetched.gaps)
                for partition, fetched in self._fetched.items()
                if fetched.has_start and fetched.gaps
            }
            if not asked or await self._explain(consumer, asked):
                self._backoff.reset()
                continue
            await self._backoff.sleep()
            self._gap.set()

    async def _explain(self, consumer: AIOKafkaConsumer, asked: dict[TopicPartition, list[range]]) -> bool:
        try:
            async with asyncio.timeout(ASK_DEADLINE_SECONDS):
                log_starts = await consumer.beginning_offsets(list(asked))
        except (KafkaError, TimeoutError) as error:
            self._log.info("log_start_unknown", error=repr(error))
            self._unanswered |= asked.keys()
            return False
        for partition in asked.keys() & log_starts.keys() & self._fetched.keys():
            self._unanswered.discard(partition)
            for lost in self._fetched[partition].explain(asked[partition], log_start=log_starts[partition]):
                self._log.error("records_lost", partition=partition.partition, first=lost.start, end=lost.stop)
                self._events.on_records_lost(len(lost))
        return True
