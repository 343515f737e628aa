"""Whether a lane's topic is still the one whose offsets are committed, or was deleted and made again under its name.

Owns when that is asked, and which answers are believed. Offsets alone do not tell: the new log may be longer than what
was done of the old one, and those who still finish tasks of the old one commit them by the same name. So each ledger
names the topic it is about.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka import TopicPartition

from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits

LOOK_SECONDS: Final = 60.0
"""As old as the clients' own metadata may be; one small request."""
CONFIRMING_SECONDS: Final = 5.0
"""A broker that is behind the others may still tell the former topic."""


async def unknown_id() -> str | None:
    """The answer where nobody can be asked."""
    return None


class TopicWatch:
    """Compares what the ledgers of a lane's partitions name with what the brokers say."""

    def __init__(
        self,
        commits: OffsetCommits,
        *,
        ask_id: Callable[[], Awaitable[str | None]],
        on_another_log: Callable[[TopicPartition], None],
    ) -> None:
        """`ask_id` tells the id of the topic as it is now, None when nobody knows."""
        self._commits = commits
        self._ask_id = ask_id
        self._on_another_log = on_another_log
        self._wanted = asyncio.Event()

    def look(self) -> None:
        """Have a look soon; returns at once."""
        self._wanted.set()

    async def run(self) -> None:
        """Look when asked to, and now and then; never returns."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK_SECONDS)
            self._wanted.clear()
            await self._compare()

    async def _compare(self) -> None:
        topic_id = await self._ask_id()
        if topic_id is None:
            return
        if self._others(topic_id):
            await asyncio.sleep(CONFIRMING_SECONDS)
            if await self._ask_id() != topic_id:
                return
        for partition in self._others(topic_id):
            self._on_another_log(partition)
        for partition in self._read:
            self._commits.progress[partition].topic_id = topic_id

    @property
    def _read(self) -> list[TopicPartition]:
        """The partitions of which it is known what their ledgers name."""
        return [partition for partition in self._commits.progress if partition not in self._commits.unread]

    def _others(self, topic_id: str) -> list[TopicPartition]:
        return [
            partition for partition in self._read if self._commits.progress[partition].topic_id not in (None, topic_id)
        ]
