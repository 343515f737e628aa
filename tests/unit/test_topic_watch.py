"""Which answers about a topic's id are believed, without a broker; with one it is tests/kafka."""

import asyncio

import pytest
import structlog
from aiokafka import TopicPartition

from fluxpool_worker.agent.consumer import topic_watch
from fluxpool_worker.agent.consumer.offset_commits import OffsetCommits
from fluxpool_worker.agent.consumer.topic_watch import TopicWatch
from fluxpool_worker.agent.task.holds import Holds
from kit.waiting import wait_until

FIRST, SECOND = TopicPartition("tasks", 0), TopicPartition("tasks", 1)


class Scene:
    """Two partitions that were taken over; the brokers give these answers, the last one for ever."""

    def __init__(self, *answers: str | None, first: str | None, second: str | None) -> None:
        """`first` and `second` are the ids that the ledgers name."""
        self.answers = list(answers)
        self.asked = 0
        self.replaced: list[TopicPartition] = []
        self.commits = OffsetCommits(holds=Holds(limit_seconds=100), log=structlog.get_logger())
        self.commits.assign([FIRST, SECOND])
        self.commits.read()
        self.commits.progress[FIRST].topic_id = first
        self.commits.progress[SECOND].topic_id = second
        self.watch = TopicWatch(self.commits, ask_id=self._ask, on_another_log=self._reset_partition)

    @property
    def known(self) -> tuple[str | None, str | None]:
        return self.commits.progress[FIRST].topic_id, self.commits.progress[SECOND].topic_id

    async def look(self, *, answers: int) -> None:
        """Have a look and wait until the brokers gave so many answers in all, and the look is over."""
        self.watch.look()
        looking = asyncio.create_task(self.watch.run())
        try:
            await wait_until(lambda: self.asked >= answers, deadline_seconds=10, what=f"{answers} answers")
            await asyncio.sleep(0)
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def _ask(self) -> str | None:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return answer

    def _reset_partition(self, partition: TopicPartition) -> None:
        self.replaced.append(partition)
        self.commits.reset(partition, 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watch, "CONFIRMING_SECONDS", 0.01)


async def test_the_same_topic_changes_nothing_and_an_unknown_one_is_learned() -> None:
    scene = Scene("a", first="a", second=None)
    await scene.look(answers=1)
    assert (scene.known, scene.replaced) == (("a", "a"), [])


async def test_another_topic_is_begun_anew_where_the_ledger_names_the_former_one() -> None:
    scene = Scene("b", first="a", second="b")
    await scene.look(answers=2)
    assert (scene.known, scene.replaced) == (("b", "b"), [FIRST])
    assert scene.commits.progress[FIRST].commit_point() == 0


@pytest.mark.parametrize("second_answer", ["a", None])
async def test_an_answer_of_a_broker_that_is_behind_is_not_believed(second_answer: str | None) -> None:
    scene = Scene("b", second_answer, first="a", second="a")
    await scene.look(answers=2)
    assert (scene.known, scene.replaced) == (("a", "a"), [])


async def test_no_answer_changes_nothing() -> None:
    scene = Scene(None, first="a", second=None)
    await scene.look(answers=1)
    assert (scene.known, scene.replaced) == (("a", None), [])


async def test_a_partition_whose_ledger_is_not_read_yet_waits_for_the_next_look() -> None:
    scene = Scene("b", first="a", second="b")
    scene.commits.assign([FIRST, SECOND])
    await scene.look(answers=1)
    assert (scene.known, scene.replaced) == (("a", "b"), [])


async def test_a_topic_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_SECONDS", 0.01)
    scene = Scene("a", "a", "b", first="a", second="a")
    await scene.look(answers=4)
    assert sorted(scene.replaced) == [FIRST, SECOND]
