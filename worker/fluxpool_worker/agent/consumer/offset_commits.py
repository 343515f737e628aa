"""Commits of one lane: the progress of its partitions, and the OffsetCommit requests for it.

Owns the commit points and ledgers of the assigned partitions (`offsets`), which of them the broker does not have yet,
and when nothing may be committed. Knows nothing of polling, records or tasks: `lane` reports their progress here.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from structlog.typing import FilteringBoundLogger

from fluxpool_transport.process import Backoff, fault_point
from fluxpool_worker.agent.consumer.membership import has_generation
from fluxpool_worker.agent.consumer.offsets import PartitionOffsets
from fluxpool_worker.agent.task.holds import Hold, HoldCause, Holds

COMMIT_DEADLINE_SECONDS: Final = 10.0
REVOKED_COMMIT_DEADLINE_SECONDS: Final = 2.5
"""While the whole group waits for this member to join again."""

_before_commit = fault_point("agent-before-commit")
_after_commit = fault_point("agent-after-commit")


class OffsetCommits:
    """Progress and commits of one group membership; `run()` commits whatever changes."""

    def __init__(
        self, *, holds: Holds, log: FilteringBoundLogger, model_family: Callable[[], str | None] = lambda: None
    ) -> None:
        """`log` is a structlog logger that names the lane; `model_family` that of the model which is loaded."""
        self._model_family = model_family
        self.progress: dict[TopicPartition, PartitionOffsets] = {}
        """Of each assigned partition."""
        self.unloaded: frozenset[TopicPartition] = frozenset()
        """Assigned, and what the group committed for them is not known yet: nothing is started or committed there."""
        self.topic_id: str | None = None
        """Id of the topic that the offsets are about, None when unknown; another topic may get its name."""
        self.epoch = 0
        """Counts assignments; a commit that was refused may be repeated only in a later one."""
        self._holds = holds
        self._hold: Hold | None = None
        self._last_error = ""
        self._backoff = Backoff(initial_seconds=0.25, maximum_seconds=1.0)
        self._log = log
        self._joined = asyncio.Event()
        self._versions = itertools.count(1)
        self._changed_at: dict[TopicPartition, int] = {}
        self._committed_at: dict[TopicPartition, int] = {}
        self._changed = asyncio.Event()
        self._settled = asyncio.Condition()
        self._lock = asyncio.Lock()
        self._read_back: set[TopicPartition] = set()

    # Ownership

    @property
    def is_joined(self) -> bool:
        """Whether the group has given this member an assignment that is still valid."""
        return self._joined.is_set()

    def assign(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin a new assignment; partitions lost with it must be revoked before. Must not await."""
        self.epoch += 1
        self.unloaded = frozenset(assigned)
        for partition in self.unloaded:
            offsets = self.progress.setdefault(partition, PartitionOffsets())
            offsets.resume()
            if offsets.in_flight:
                self.mark_changed(partition)
        self._joined.set()
        self._changed.set()

    def mark_loaded(self) -> None:
        """What the group committed is known for all assigned partitions."""
        self.unloaded = frozenset()
        self._changed.set()

    def suspend(self) -> None:
        """Commit nothing in `run()` before the next assignment proves ownership."""
        self._joined.clear()

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions that belong to another member."""
        for partition in partitions:
            self.progress.pop(partition, None)
            self._changed_at.pop(partition, None)
            self._committed_at.pop(partition, None)
            # Wakes `run()`, which tells those who wait for a commit of these partitions.
            self._changed.set()

    def end(self) -> None:
        """End the membership, and a hold that its commits began."""
        self.suspend()
        self._end_hold()

    def reset(self, partition: TopicPartition, offset: int) -> None:
        """Forget all progress on the partition, and commit that offset in its place."""
        self.progress[partition] = PartitionOffsets(next_offset=offset)
        self.mark_changed(partition)

    # Changes

    def mark_changed(self, partition: TopicPartition) -> int:
        """Have the partition's commit point and ledger committed; returns the version to wait for."""
        version = next(self._versions)
        self._changed_at[partition] = version
        self._changed.set()
        return version

    def release_all(self, *, permanently: bool = False) -> None:
        """Mark what is in flight as released, permanently or until the next assignment, which takes that back.

        A partition without tasks in flight is not committed again: its topic may have been replaced since.
        """
        for partition, offsets in self.progress.items():
            if offsets.in_flight:
                offsets.release(permanently=permanently)
                self.mark_changed(partition)

    def is_committed(self, partition: TopicPartition, version: int) -> bool:
        """Whether the broker has that version of the partition, or a later one."""
        return self._committed_at.get(partition, 0) >= version

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that a commit, a change of ownership or `notify()` makes true."""
        async with self._settled:
            await self._settled.wait_for(condition)

    async def notify(self) -> None:
        """Let all waiters check their conditions again."""
        async with self._settled:
            self._settled.notify_all()

    async def wait_committed(self) -> None:
        """Wait until the broker has all there is, but not for longer than a commit may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMMIT_DEADLINE_SECONDS):
                await self.wait_until(lambda: not self._uncommitted())

    # Commits

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """Commit what changes, as long as the membership is valid; never returns.

        Raises `HoldExpiredError` when no commit has succeeded for too long, whatever the brokers answer.
        """
        while True:
            await self._changed.wait()
            # Before the commit reads the state: a change during its request sets the event again.
            self._changed.clear()
            # Waiters first: a condition may have changed without a commit, and the next join may take long.
            await self.notify()
            await self._joined.wait()
            if await self.commit_once(consumer, deadline_seconds=COMMIT_DEADLINE_SECONDS):
                self._backoff.reset()
                continue
            if self._hold is not None:
                self._holds.check(self._hold, f"offsets cannot be committed: {self._last_error}")
            await self._backoff.sleep()
            self._changed.set()

    async def commit_once(self, consumer: AIOKafkaConsumer, *, deadline_seconds: float) -> bool:
        """Commit every partition that changed; False when it has to be tried again.

        The deadline includes the wait for a commit that is under way already.
        """
        # One commit at a time: two requests on their way could land in either order, the older one last. While a
        # revocation waits for the lock the whole group waits, so the wait counts against its deadline.
        deadline = asyncio.get_running_loop().time() + deadline_seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._lock.acquire()
        except TimeoutError:
            return False
        try:
            return await self._commit_changes(consumer, deadline)
        finally:
            self._lock.release()

    async def _commit_changes(self, consumer: AIOKafkaConsumer, deadline: float) -> bool:
        # A change during the request gets a later version, so that it is not taken for committed.
        versions = {partition: self._changed_at[partition] for partition in self._uncommitted()}
        known = {"topic_id": self.topic_id, "model_family": self._model_family()}
        batch = {
            partition: OffsetAndMetadata(commit_point, self.progress[partition].metadata(**known))
            for partition in versions
            if (commit_point := self.progress[partition].commit_point()) is not None
        }
        if not batch:
            # The partitions that could not be committed were revoked: no later commit would end their hold.
            self._end_hold()
        elif not await self._send(consumer, batch, deadline):
            return False
        for partition, version in versions.items():
            if partition in self.progress:
                self._committed_at[partition] = version
        await self.notify()
        return True

    def _uncommitted(self) -> set[TopicPartition]:
        return {
            partition
            for partition, version in self._changed_at.items()
            if partition not in self.unloaded and not self.is_committed(partition, version)
        }

    async def _send(
        self, consumer: AIOKafkaConsumer, batch: dict[TopicPartition, OffsetAndMetadata], deadline: float
    ) -> bool:
        epoch = self.epoch
        _before_commit()
        try:
            async with asyncio.timeout_at(deadline):
                await consumer.commit(batch)
                late = self._read_back & batch.keys()
                overwritten = [tp for tp in late if (await consumer.committed(tp) or 0) != batch[tp].offset]
        except (CommitFailedError, IllegalStateError) as error:
            # The member was thrown out or the group rebalances: nothing may be committed before a new assignment proves
            # ownership. If one came during the request, it is valid, and the refusal was about its predecessor.
            self._log.info("commit_refused", error=str(error), member=has_generation(consumer))
            if self.epoch == epoch:
                self.suspend()
            return False
        except (KafkaError, TimeoutError) as error:
            # The request may still be on its way and land late, with these offsets: read back after the next success.
            self._read_back |= batch.keys()
            self._hold = self._hold or self._holds.begin(HoldCause.KAFKA)
            self._last_error = repr(error)
            self._log.warning("commit_timed_out", error=self._last_error)
            return False
        _after_commit()
        self._end_hold()
        self._read_back -= late
        for partition in batch.keys() & self.progress.keys():
            self.progress[partition].committed = batch[partition].offset
        return not overwritten

    def _end_hold(self) -> None:
        self._holds.end(self._hold)
        self._hold = None
