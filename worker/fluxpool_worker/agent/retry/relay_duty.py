"""Which agent of a pool relays its retries: the owner of partition 0 of the pool's first lane.

Owns that decision, as the lane's group makes it, and the hand-over: a round of relaying and committing that runs while
the group rebalances is finished before this agent joins again, and none begins before the next assignment.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Final

import structlog
from aiokafka import TopicPartition

RELAY_PARTITION: Final = 0
"""The one partition that every topic has."""
HAND_OVER_SECONDS: Final = 2.0
"""The whole group waits for this member meanwhile; a record that takes longer may be relayed by the next owner, too."""

log = structlog.get_logger(__name__)


class RelayDuty:
    """The first lane reports its assignments, the relay asks."""

    def __init__(self) -> None:
        self.term = 0
        """Counts the assignments that gave or renewed the duty: other agents may have relayed between two of them."""
        self._held = asyncio.Event()
        self._assigned = asyncio.Event()
        """Set by each assignment, cleared while the group rebalances."""
        self._round = asyncio.Lock()

    @property
    def is_held(self) -> bool:
        """Whether the latest assignment gave the duty to this agent."""
        return self._held.is_set()

    @property
    def may_work(self) -> bool:
        """Whether it did, and the group has not begun to rebalance since."""
        return self.is_held and self._assigned.is_set()

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """The lane has a new assignment; empty when it has left its group. Must not await."""
        is_held = any(item.partition == RELAY_PARTITION for item in partitions)
        if is_held != self.is_held:
            log.info("retry_relay_duty", held=is_held)
        self._assigned.set()
        if is_held:
            # Also when the duty is kept: another agent may have relayed between the two assignments.
            self.term += 1
            self._held.set()
        else:
            self._held.clear()

    async def revoked(self) -> None:
        """The group rebalances: returns when the round under way is finished, or takes too long."""
        # Before the wait: a round that begins from here on finds no permission to work.
        self._assigned.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_SECONDS), self._round:
                pass

    @contextlib.asynccontextmanager
    async def round(self) -> AsyncIterator[None]:
        """Something that a hand-over waits for; check `may_work` inside."""
        async with self._round:
            yield

    async def wait_held(self) -> None:
        """Return when this agent has the duty."""
        await self._held.wait()

    async def wait_assigned(self) -> None:
        """Return at once, or when the rebalance that is under way has given an assignment, with the duty or without."""
        await self._assigned.wait()
