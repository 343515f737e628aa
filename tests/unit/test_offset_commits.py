"""What a lane commits, and what waits for it, without a broker; with one it is tests/chaos and tests/kafka."""

from collections.abc import Mapping

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import OffsetAndMetadata

from fluxpool_worker.agent.holds import HoldCause, Holds
from fluxpool_worker.agent.offset_commits import OffsetCommits

FIRST, SECOND = TopicPartition("tasks", 0), TopicPartition("tasks", 1)


class AwayConsumer:
    """The brokers cannot be reached."""

    async def commit(self, _offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        raise KafkaConnectionError


async def test_a_hold_for_a_commit_ends_when_its_partition_has_gone_to_somebody_else() -> None:
    holds = Holds(limit_seconds=100)
    commits = OffsetCommits(holds=holds, log=structlog.get_logger())
    commits.assign([FIRST])
    commits.read()
    commits.progress[FIRST].start(0)
    commits.mark_changed(FIRST)
    assert not await commits.commit_once(AwayConsumer(), deadline_seconds=10)
    assert holds.causes == {HoldCause.KAFKA}

    commits.forget([FIRST])
    commits.assign([SECOND])
    commits.read()
    assert await commits.commit_once(AwayConsumer(), deadline_seconds=10)
    assert holds.causes == frozenset()
