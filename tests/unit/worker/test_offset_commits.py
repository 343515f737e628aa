"""Commits of a lane, and what waits for them, without a broker; tests/chaos and tests/kafka use one."""

import asyncio
from collections.abc import Mapping

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError
from aiokafka.structs import OffsetAndMetadata

from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits
from fluxpool_worker.agent.task.holds import HoldCause, HoldExpiredError, Holds

FIRST, SECOND = TopicPartition("tasks", 0), TopicPartition("tasks", 1)


class AwayConsumer:
    """The brokers cannot be reached."""

    async def commit(self, _offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        raise KafkaConnectionError


async def test_a_hold_for_a_commit_ends_when_its_partition_was_reassigned() -> None:
    holds = Holds(limit_seconds=100)
    commits = OffsetCommits(holds=holds, log=structlog.get_logger())
    commits.assign([FIRST])
    commits.mark_loaded()
    commits.progress[FIRST].start(0)
    commits.mark_changed(FIRST)
    assert not await commits.commit_once(AwayConsumer(), deadline_seconds=10)
    assert holds.causes == {HoldCause.KAFKA}

    commits.revoke([FIRST])
    commits.assign([SECOND])
    commits.mark_loaded()
    assert await commits.commit_once(AwayConsumer(), deadline_seconds=10)
    assert holds.causes == frozenset()


class SilentConsumer:
    """The brokers accept the request and never respond."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def commit(self, _offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        self.asked.set()
        await asyncio.Event().wait()


class ForbiddingConsumer:
    """The permission to commit for the group was revoked."""

    async def commit(self, _offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        raise GroupAuthorizationFailedError("group")


def with_a_change(*, limit_seconds: float) -> tuple[OffsetCommits, Holds]:
    holds = Holds(limit_seconds=limit_seconds)
    commits = OffsetCommits(holds=holds, log=structlog.get_logger())
    commits.assign([FIRST])
    commits.mark_loaded()
    commits.progress[FIRST].start(0)
    commits.mark_changed(FIRST)
    return commits, holds


async def test_a_commit_that_always_fails_ends_at_the_hold_limit() -> None:
    commits, _ = with_a_change(limit_seconds=0)
    with pytest.raises(HoldExpiredError, match="GroupAuthorizationFailedError"):
        await commits.run(ForbiddingConsumer())


async def test_a_revocation_does_not_wait_past_its_deadline_for_a_commit_in_progress() -> None:
    commits, _ = with_a_change(limit_seconds=100)
    consumer = SilentConsumer()
    under_way = asyncio.create_task(commits.commit_once(consumer, deadline_seconds=100))
    await consumer.asked.wait()
    async with asyncio.timeout(10):
        assert not await commits.commit_once(consumer, deadline_seconds=0.01)
    under_way.cancel()
