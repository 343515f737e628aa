"""How a lane loads a newly assigned partition, without a broker; `tests/kafka` uses one."""

import asyncio
from collections.abc import Iterable
from typing import Self

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import OffsetAndMetadata

from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_worker.agent.consumer.assignment_loader import AssignmentLoader, TopicReplacedError
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds

PARTITION = TopicPartition("tasks", 0)


class OneAnswerConsumer:
    """A consumer whose coordinator returns this commit for every partition."""

    def __init__(self, committed: OffsetAndMetadata) -> None:
        self._committed = committed
        self.sought: list[int] = []

    @property
    def _coordinator(self) -> Self:
        return self

    async def fetch_committed_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        return dict.fromkeys(partitions, self._committed)

    def seek(self, _partition: TopicPartition, offset: int) -> None:
        self.sought.append(offset)


class Lane(LaneEvents):
    """Takes the loader's reports."""

    def __init__(self) -> None:
        self.loaded = asyncio.Event()

    def on_loaded(self) -> None:
        self.loaded.set()

    def on_overtaken(self, partition: TopicPartition, offsets: frozenset[int]) -> None:
        pass

    def on_restarted(self, partition: TopicPartition) -> None:
        pass

    def crashes_of(self, entry: LedgerEntry) -> int:
        return entry.crashes


class Scene:
    """A lane with a new assignment. With `next_offset` 7, offset 6 of its topic was the last one done."""

    def __init__(self, topic_id: str | None, *, next_offset: int | None = None, limit_seconds: float = 100) -> None:
        """`topic_id` is what the brokers answer."""
        log = structlog.get_logger()
        self._topic_id = topic_id
        self.commits = OffsetCommits(holds=Holds(limit_seconds=limit_seconds), log=log)
        self.lane = Lane()
        gaps = GapTracker(events=self.lane, log=log)
        self.loader = AssignmentLoader(
            self.commits,
            gaps,
            lane=self.lane,
            events=self.lane,
            topic="tasks",
            ask_topic_id=self._ask_topic_id,
            holds=Holds(limit_seconds=limit_seconds),
            log=log,
        )
        self.commits.assign([PARTITION])
        self.commits.progress[PARTITION].next_offset = next_offset
        gaps.assign([PARTITION])
        self.loader.begin()

    @property
    def commit_point(self) -> int | None:
        return self.commits.progress[PARTITION].commit_point()

    async def load(self, consumer: OneAnswerConsumer) -> None:
        """Return when the assignment is loaded; raises the loader's errors."""
        running = asyncio.create_task(self.loader.run(consumer))
        loaded = asyncio.create_task(self.lane.loaded.wait())
        await asyncio.wait({running, loaded}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            loaded.cancel()
            running.result()
        running.cancel()
        await asyncio.wait({running})

    async def _ask_topic_id(self) -> str | None:
        return self._topic_id


def commit_about(topic_id: str | None, offset: int = 5) -> OffsetAndMetadata:
    return OffsetAndMetadata(offset, encode_ledger({}, topic_id=topic_id))


@pytest.mark.parametrize(
    ("known", "committed_about", "sought", "named"),
    [
        ("present", "present", [], "present"),
        ("present", None, [], "present"),
        (None, "former", [], "former"),
        (None, None, [], None),
        ("present", "former", [0], "present"),
    ],
)
async def test_a_commit_is_used_unless_its_ledger_names_another_topic(
    *, known: str | None, committed_about: str | None, sought: list[int], named: str | None
) -> None:
    scene, consumer = Scene(known), OneAnswerConsumer(commit_about(committed_about))
    await scene.load(consumer)
    assert consumer.sought == sought
    assert scene.commits.progress[PARTITION].committed == (None if sought else 5)
    assert scene.commits.topic_id == named
    assert not scene.commits.unloaded


async def test_a_commit_of_the_former_topic_does_not_undo_progress_in_the_present_one() -> None:
    scene, consumer = Scene("present", next_offset=7), OneAnswerConsumer(commit_about("former", 50))
    await scene.load(consumer)
    assert (consumer.sought, scene.commit_point) == ([7], 7)


async def test_a_ledger_of_another_topic_is_used_once_the_brokers_know_that_topic() -> None:
    scene = Scene("present")
    scene.commits.topic_id = "former"
    with pytest.raises(TopicReplacedError, match=r"id former before, present now"):
        await scene.load(OneAnswerConsumer(commit_about("present")))
    assert scene.commits.unloaded, "nothing is committed on what is not loaded"


async def test_the_error_of_a_replaced_topic_says_what_to_do() -> None:
    assert "its next start begins with the first record" in str(TopicReplacedError("tasks", "was deleted"))


async def test_unreadable_commits_end_the_membership_at_the_hold_limit() -> None:
    class AwayCoordinator(OneAnswerConsumer):
        async def fetch_committed_offsets(
            self, _partitions: Iterable[TopicPartition]
        ) -> dict[TopicPartition, OffsetAndMetadata]:
            raise KafkaConnectionError

    scene = Scene(None, limit_seconds=0)
    with pytest.raises(HoldExpiredError, match="committed offsets cannot be read"):
        await scene.loader.run(AwayCoordinator(commit_about(None)))
