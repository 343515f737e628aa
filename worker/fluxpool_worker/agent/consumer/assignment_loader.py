"""Loads each new assignment: committed offsets, the ledgers beside them, and which topic both are about.

Owns the requests and what their answers mean. Nothing is started or committed on a partition before its load. Offsets
continue in `offset_commits`, gaps of the log in `gap_tracker`, records in `lane`. A topic that was deleted and created
again ends the worker; each ledger names its topic by id, so that the next start uses no offset of the former one.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from structlog.typing import FilteringBoundLogger

from fluxpool_contract.kafka import committed_topic_id, decode_ledger, is_ledger
from fluxpool_transport.process import Backoff
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.membership import committed_with_metadata
from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits
from fluxpool_worker.agent.task.holds import Hold, HoldCause, Holds

READ_DEADLINE_SECONDS: Final = 10.0
TOPIC_CHECK_SECONDS: Final = 60.0
"""As old as the clients' own metadata may be; one small request."""


class TopicReplacedError(Exception):
    """The lane's topic was deleted and created again, or its log was truncated; the worker must start again."""

    def __init__(self, topic: str, what: str) -> None:
        super().__init__(
            f"topic {topic} {what}; this worker ends, and its next start begins with the first record of the present "
            f"log. Nothing else is needed where workers are restarted, as in Kubernetes; otherwise start it again"
        )


class AssignmentEvents(Protocol):
    """What the loader reports to its lane, from the event loop."""

    def on_loaded(self) -> None:
        """Records of all assigned partitions may be fetched and started."""

    def on_overtaken(self, partition: TopicPartition, offsets: frozenset[int]) -> None:
        """Another member committed past these offsets, which are in flight here."""

    def on_restarted(self, partition: TopicPartition) -> None:
        """The partition is read again from another offset; what was fetched so far does not count."""


@dataclass(slots=True, eq=False)
class AssignmentLoader:
    """Reads what the group knows of newly assigned partitions into the lane's `OffsetCommits`."""

    commits: OffsetCommits
    gaps: GapTracker
    _: KW_ONLY
    lane: AssignmentEvents
    events: LaneEvents
    topic: str
    ask_topic_id: Callable[[], Awaitable[str | None]]
    """Returns the id of the topic that has the name now, None when it is unknown."""
    holds: Holds
    log: FilteringBoundLogger
    _hold: Hold | None = field(default=None, init=False)
    _backoff: Backoff = field(default_factory=partial(Backoff, initial_seconds=0.25, maximum_seconds=1.0), init=False)
    _assigned: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _loaded: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def begin(self) -> None:
        """Load a new assignment; returns at once."""
        self._assigned.set()

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """Load each assignment; never returns.

        Raises `TopicReplacedError`, and `HoldExpiredError` when commits could not be read for too long: other workers
        may be able to.
        """
        while True:
            await self._assigned.wait()
            self._assigned.clear()
            epoch, unloaded = self.commits.epoch, self.commits.unloaded
            try:
                async with asyncio.timeout(READ_DEADLINE_SECONDS):
                    committed = await committed_with_metadata(consumer, unloaded)
            except (KafkaError, TimeoutError) as error:
                await self._retry(repr(error))
                continue
            # The id comes before any offset is used: an offset of a former topic would skip records of this one. It may
            # be outdated where a ledger has another one, or no commit is left: Kafka deletes them with their topic.
            if not (committed and self.commits.topic_id) or any(map(self._is_of_former_topic, committed.values())):
                await self._check_topic()
            # A rebalance during the requests has set the event again; these answers are about its predecessor.
            if epoch != self.commits.epoch:
                continue
            for partition in unloaded & self.commits.progress.keys():
                self._load(consumer, partition, committed.get(partition))
            self._hold = None
            self._backoff.reset()
            # Only after every partition: from here on records start, and commits replace what was just read.
            self.commits.mark_loaded()
            self.lane.on_loaded()
            self._loaded.set()

    async def watch_topic(self) -> None:
        """Check the topic's id after each load and once a minute; never returns. Raises `TopicReplacedError`."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._loaded.wait(), TOPIC_CHECK_SECONDS)
            self._loaded.clear()
            await self._check_topic()

    async def _check_topic(self) -> None:
        known, present = self.commits.topic_id, await self.ask_topic_id()
        if known is not None and present not in (None, known):
            raise TopicReplacedError(self.topic, f"was deleted and created again (id {known} before, {present} now)")
        self.commits.topic_id = known or present

    def _is_of_former_topic(self, committed: OffsetAndMetadata) -> bool:
        topic_id = committed_topic_id(committed.metadata)
        return topic_id is not None and self.commits.topic_id not in (None, topic_id)

    async def _retry(self, error: str) -> None:
        self.log.warning("committed_offsets_unreadable", error=error)
        self._hold = self._hold or self.holds.begin_apart(HoldCause.KAFKA)
        self.holds.check(self._hold, f"committed offsets cannot be read: {error}")
        await self._backoff.sleep()
        self._assigned.set()

    def _load(self, consumer: AIOKafkaConsumer, partition: TopicPartition, committed: OffsetAndMetadata | None) -> None:
        offsets = self.commits.progress[partition]
        if committed is not None and self._is_of_former_topic(committed):
            self._restart(consumer, partition, ignored=committed)
        elif committed is not None:
            self._adopt(partition, committed)
        known = [offset for offset in (offsets.next_offset, offsets.committed) if offset is not None]
        self.gaps.set_start(partition, max(known, default=None))

    def _restart(self, consumer: AIOKafkaConsumer, partition: TopicPartition, *, ignored: OffsetAndMetadata) -> None:
        """The commit is about a former topic: begin at the first record, or where this member was in the new topic."""
        offsets = self.commits.progress[partition]
        if offsets.next_offset is None:
            offsets.next_offset = 0
        self.commits.mark_changed(partition)
        self.log.warning(
            "former_topic_commit_ignored",
            partition=partition.partition,
            offset=ignored.offset,
            start=offsets.commit_point(),
        )
        # The consumer itself began at the ignored offset.
        self.lane.on_restarted(partition)
        with contextlib.suppress(IllegalStateError):  # a rebalance has just taken the partition away
            consumer.seek(partition, offsets.commit_point())

    def _adopt(self, partition: TopicPartition, committed: OffsetAndMetadata) -> None:
        offsets = self.commits.progress[partition]
        # After this member was thrown out and came back, others may have owned the partition: their commits count.
        self.lane.on_overtaken(partition, offsets.advance_to_committed(committed.offset))
        self.commits.topic_id = self.commits.topic_id or committed_topic_id(committed.metadata)
        if not is_ledger(committed.metadata):
            # Another client's commit: Kafka forgets it some days after the last member left. One from here is kept.
            offsets.recommits = True
            self.commits.mark_changed(partition)
        entries = {
            offset: entry for offset, entry in decode_ledger(committed.metadata).items() if offsets.accepts(offset)
        }
        counted = {offset: replace(entry, crashes=self.events.crashes_of(entry)) for offset, entry in entries.items()}
        offsets.inherit(counted)
        for offset, entry in counted.items():
            if entry.crashes:
                self.log.warning(
                    "crash_counted" if entry.crashes > entries[offset].crashes else "crashes_inherited",
                    request_id=entry.task,
                    crashes=entry.crashes,
                    worker=entry.worker,
                    partition=partition.partition,
                    offset=offset,
                )
