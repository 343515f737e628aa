"""Records of a lane that nobody will ever do: found where the consumer passes over offsets, and said once, loudly.

Owns what was seen of each assigned partition's log, and the requests that explain it: none is sent without a gap, and
none keeps the lane from polling. The consumer itself goes on at the beginning of the log in silence.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from fluxpool_worker.agent.consumer.fetch_gaps import FetchGaps

ASK_DEADLINE_SECONDS: Final = 10.0
ASK_RETRY_SECONDS: Final = 5.0


class GapTracker:
    """What a lane's consumer passed over."""

    def __init__(self, *, count_lost: Callable[[int], None], log: FilteringBoundLogger) -> None:
        """`count_lost` is told how many records went away; `log` is a structlog logger that names the lane."""
        self._count_lost = count_lost
        self._log = log
        self._fetched: dict[TopicPartition, FetchGaps] = {}
        self._unanswered: set[TopicPartition] = set()
        self._gap = asyncio.Event()

    def assign(self, assigned: Collection[TopicPartition]) -> None:
        """Begin a new assignment. Must not await."""
        self._fetched = {partition: self._fetched.get(partition, FetchGaps()) for partition in assigned}
        self._unanswered.clear()
        for fetched in self._fetched.values():
            fetched.begin()

    def set_start(self, partition: TopicPartition, low_watermark: int | None) -> None:
        """It is known where the partition should go on; the contract is that of `FetchGaps.set_start`."""
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
            self._gap.clear()
            asked = {
                partition: list(fetched.gaps)
                for partition, fetched in self._fetched.items()
                if fetched.has_start and fetched.gaps
            }
            if asked and not await self._explain(consumer, asked):
                await asyncio.sleep(ASK_RETRY_SECONDS)
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
                self._count_lost(len(lost))
        return True
