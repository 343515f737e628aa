"""What a lane takes over with each assignment: committed offsets and the ledger of former owners.

Owns reading them and saying what they mean. Nothing is begun or committed on a partition before it has been read.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from structlog.typing import FilteringBoundLogger

from fluxpool_contract.kafka import LedgerEntry, decode_ledger, is_ledger, ledger_topic
from fluxpool_worker.agent.consumer.fetch_gaps import is_another_log
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.membership import committed_with_metadata
from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits
from fluxpool_worker.agent.task.holds import Hold, HoldCause, Holds

READ_DEADLINE_SECONDS: Final = 10.0
READ_RETRY_SECONDS: Final = 0.5
LOG_END_DEADLINE_SECONDS: Final = 2.0
"""Everything waits for it, and a partition without a leader has no answer: then its log is taken for the same one."""
CONFIRMING_SECONDS: Final = 20.0
"""A coordinator that has just taken over may know of no commit until the other replicas follow it."""


class AssignmentLoader:
    """Reads what the group knows of newly assigned partitions into the lane's `OffsetCommits`."""

    def __init__(
        self,
        commits: OffsetCommits,
        gaps: GapTracker,
        *,
        count_crashes: Callable[[LedgerEntry], int],
        on_another_log: Callable[[TopicPartition], None],
        on_overtaken: Callable[[TopicPartition, frozenset[int]], None],
        on_read: Callable[[], None],
        holds: Holds,
        log: FilteringBoundLogger,
    ) -> None:
        """`on_overtaken` is told of offsets in flight here that others have committed past, `on_read` when all is read.

        `on_another_log` is told of a topic that was made again, `gaps` where each partition goes on. `count_crashes`
        is that of `LaneConsumer`; `log` is a structlog logger that names the lane.
        """
        self._commits = commits
        self._gaps = gaps
        self._count_crashes = count_crashes
        self._on_another_log = on_another_log
        self._on_overtaken = on_overtaken
        self._on_read = on_read
        self._holds = holds
        self._hold: Hold | None = None
        self._log = log
        self._assigned = asyncio.Event()
        self._doubted_since: float | None = None

    def begin(self) -> None:
        """There is a new assignment to read; returns at once."""
        self._assigned.set()

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """After each assignment, learn what former owners left behind; never returns.

        Raises `HoldExpiredError` when that could not be read for too long: others may be able to.
        """
        while True:
            await self._assigned.wait()
            self._assigned.clear()
            epoch, unread = self._commits.epoch, self._commits.unread
            try:
                async with asyncio.timeout(READ_DEADLINE_SECONDS):
                    committed = await committed_with_metadata(consumer, unread)
            except (KafkaError, TimeoutError) as error:
                await self._read_again(repr(error))
                continue
            if self._is_doubtful(unread, committed):
                await self._read_again("what the group had committed is gone; held until Kafka confirms it")
                continue
            log_ends = await self._log_ends(consumer, unread)
            if epoch != self._commits.epoch:
                continue  # assigned anew meanwhile, which has set the event
            for partition in unread & self._commits.progress.keys():
                self._go_on(partition, committed.get(partition), log_ends.get(partition))
            self._hold = None
            self._commits.read()
            self._on_read()

    async def _read_again(self, error: str) -> None:
        self._log.warning("committed_offsets_unreadable", error=error)
        self._hold = self._hold or self._holds.begin_apart(HoldCause.KAFKA)
        self._holds.check(self._hold, f"committed offsets cannot be read: {error}")
        await asyncio.sleep(READ_RETRY_SECONDS)
        self._assigned.set()

    def _is_doubtful(
        self, unread: frozenset[TopicPartition], committed: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> bool:
        """Whether a commit is missing that this worker knows of, and has not been so for long."""
        progress = self._commits.progress
        known = {partition for partition in unread & progress.keys() if progress[partition].committed is not None}
        if known <= committed.keys():
            self._doubted_since = None
            return False
        now = asyncio.get_running_loop().time()
        since = now if self._doubted_since is None else self._doubted_since
        is_doubtful = now - since < CONFIRMING_SECONDS
        # What is believed is no doubt any more: the next one begins anew.
        self._doubted_since = since if is_doubtful else None
        return is_doubtful

    async def _log_ends(
        self, consumer: AIOKafkaConsumer, unread: frozenset[TopicPartition]
    ) -> dict[TopicPartition, int]:
        progress = self._commits.progress
        kept = [partition for partition in unread & progress.keys() if progress[partition].next_offset is not None]
        if not kept:
            return {}
        try:
            async with asyncio.timeout(LOG_END_DEADLINE_SECONDS):
                log_ends: dict[TopicPartition, int] = await consumer.end_offsets(kept)
        except (KafkaError, TimeoutError) as error:
            self._log.info("log_end_unknown", error=repr(error))
            return {}
        return log_ends

    def _go_on(self, partition: TopicPartition, committed: OffsetAndMetadata | None, log_end: int | None) -> None:
        if self._gaps.has_start(partition):
            return  # its log was replaced since it was assigned, and what was read is what the group said before
        offsets = self._commits.progress[partition]
        if is_another_log(
            next_offset=offsets.next_offset,
            known_committed=offsets.committed,
            committed=committed.offset if committed is not None else None,
            log_end=log_end,
            known_topic=offsets.topic_id,
            committed_topic=ledger_topic(committed.metadata) if committed is not None else None,
        ):
            self._on_another_log(partition)
            return
        if committed is not None:
            self._adopt(partition, committed)
        known = [offset for offset in (offsets.next_offset, offsets.committed) if offset is not None]
        self._gaps.set_start(partition, max(known, default=None))

    def _adopt(self, partition: TopicPartition, committed: OffsetAndMetadata) -> None:
        offsets = self._commits.progress[partition]
        # A member that was thrown out and came back: others may have had the partition, and their commits stand.
        self._on_overtaken(partition, offsets.advance_to_committed(committed.offset))
        offsets.topic_id = offsets.topic_id or ledger_topic(committed.metadata)
        if not is_ledger(committed.metadata):
            # Another client's commit: Kafka forgets it some days after the last member left. One from here is kept.
            offsets.recommits = True
            self._commits.mark_changed(partition)
        entries = {
            offset: entry for offset, entry in decode_ledger(committed.metadata).items() if offsets.accepts(offset)
        }
        counted = {offset: replace(entry, crashes=self._count_crashes(entry)) for offset, entry in entries.items()}
        offsets.inherit(counted)
        for offset, entry in counted.items():
            if entry.crashes:
                self._log.warning(
                    "crash_counted" if entry.crashes > entries[offset].crashes else "crashes_inherited",
                    request_id=entry.task,
                    crashes=entry.crashes,
                    worker=entry.worker,
                    partition=partition.partition,
                    offset=offset,
                )
