"""What a lane makes of the answers about a newly assigned partition, without a broker; with one it is tests/kafka."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Self

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import OffsetAndMetadata

from fluxpool_worker.agent.consumer import assignment_loader
from fluxpool_worker.agent.consumer.assignment_loader import AssignmentLoader
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds
from kit.waiting import wait_until

PARTITION = TopicPartition("tasks", 0)


class ForgetfulConsumer:
    """Its coordinator answers with these offsets, one after the other; None is an answer without a commit."""

    def __init__(self, *answers: int | None) -> None:
        self._answers = list(answers)
        self.asked = 0

    @property
    def _coordinator(self) -> Self:
        return self

    async def fetch_committed_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        return {} if answer is None else {partition: OffsetAndMetadata(answer, "") for partition in partitions}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 100)


class Scene:
    """A lane that has done everything before offset 7, and committed it."""

    def __init__(self, *, limit_seconds: float = 100) -> None:
        log = structlog.get_logger()
        self.commits = OffsetCommits(holds=Holds(limit_seconds=limit_seconds), log=log)
        self.gaps = GapTracker(count_lost=lambda _records: None, log=log)
        self.replaced: list[TopicPartition] = []
        self.loader = AssignmentLoader(
            self.commits,
            self.gaps,
            count_crashes=lambda entry: entry.crashes,
            on_another_log=self.replaced.append,
            on_overtaken=lambda _partition, _passed: None,
            on_read=lambda: None,
            holds=Holds(limit_seconds=limit_seconds),
            log=log,
        )
        self.assign()
        self.commits.read()
        self.commits.progress[PARTITION].start(6)
        self.commits.progress[PARTITION].finish(6)
        self.commits.progress[PARTITION].committed = 7
        self.assign()

    def assign(self) -> None:
        self.commits.assign([PARTITION])
        self.gaps.assign([PARTITION])
        self.loader.begin()

    @asynccontextmanager
    async def reading(self, consumer: ForgetfulConsumer) -> AsyncIterator[None]:
        running = asyncio.create_task(self.loader.run(consumer))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment_loader, "READ_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(assignment_loader, "CONFIRMING_SECONDS", 0.2)


async def test_a_commit_that_is_gone_for_a_moment_costs_a_moment() -> None:
    scene = Scene()
    consumer = ForgetfulConsumer(None, None, 7)
    async with scene.reading(consumer):
        await wait_until(lambda: not scene.commits.unread, deadline_seconds=10, what="the partition to be read")
    assert (consumer.asked, scene.replaced) == (3, [])
    assert scene.commits.progress[PARTITION].commit_point() == 7


async def test_a_commit_that_stays_gone_is_that_of_a_topic_that_was_made_again() -> None:
    scene = Scene()
    async with scene.reading(ForgetfulConsumer(None)):
        await wait_until(lambda: scene.replaced == [PARTITION], deadline_seconds=10, what="the new log to be noticed")
        assert not scene.commits.unread


async def test_every_doubt_is_given_its_time() -> None:
    scene = Scene()
    async with scene.reading(ForgetfulConsumer(*[None] * 5, 7, *[None] * 5, 7)):
        await wait_until(lambda: not scene.commits.unread, deadline_seconds=10, what="the first reading")
        await asyncio.sleep(0.2)
        scene.assign()
        await wait_until(lambda: not scene.commits.unread, deadline_seconds=10, what="the second reading")
    assert scene.replaced == []


async def test_a_doubt_that_was_believed_gives_the_next_one_its_time_too() -> None:
    scene = Scene()
    consumer = ForgetfulConsumer(None)
    async with scene.reading(consumer):
        await wait_until(lambda: not scene.commits.unread, deadline_seconds=10, what="the first doubt to be believed")
        known = consumer.asked
        scene.assign()
        await wait_until(lambda: not scene.commits.unread, deadline_seconds=10, what="the second doubt to be believed")
    assert consumer.asked > known + 2, "it asked again before it believed"


async def test_commits_that_cannot_be_read_end_the_membership_at_the_limit_of_holds() -> None:
    class AwayCoordinator(ForgetfulConsumer):
        async def fetch_committed_offsets(
            self, _partitions: Iterable[TopicPartition]
        ) -> dict[TopicPartition, OffsetAndMetadata]:
            raise KafkaConnectionError

    scene = Scene(limit_seconds=0)
    with pytest.raises(HoldExpiredError, match="committed offsets cannot be read"):
        await scene.loader.run(AwayCoordinator())
