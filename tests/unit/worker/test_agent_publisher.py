"""Records that brokers reject or do not acknowledge, without a broker; `tests/kafka` uses one."""

import asyncio
from typing import Any, Self, TypeAlias

import pytest
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
    UnknownError,
)
from aiokafka.structs import RecordMetadata, TopicPartition

from fluxpool_worker.agent.task import publisher as publisher_module
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds
from fluxpool_worker.agent.task.publisher import OutgoingRecord, RecordRefusedError, ReliablePublisher

RECORD = OutgoingRecord(topic="results", key=b"id", value=b"{}", headers=[])
ACKED = RecordMetadata("results", 0, TopicPartition("results", 0), 7, 0, 0, 0)
Answer: TypeAlias = BaseException | RecordMetadata | asyncio.Event


class ScriptedProducer:
    """Answers each record with the next of its answers: an error, the offset, or nothing until the event is set."""

    def __init__(self, answers: list[Answer]) -> None:
        self._answers = answers
        self.is_stopped = False

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.is_stopped = True

    async def partitions_for(self, _topic: str) -> set[int]:
        return {0}

    async def send(self, _topic: str, _value: bytes, **_options: Any) -> "asyncio.Future[RecordMetadata]":
        answer = self._answers.pop(0)
        if isinstance(answer, ValueError):
            raise answer
        return asyncio.ensure_future(_answered(answer))


async def _answered(answer: Answer) -> RecordMetadata:
    if isinstance(answer, asyncio.Event):
        await answer.wait()
    if isinstance(answer, BaseException):
        raise answer
    return ACKED


class Bench:
    """A publisher whose producers share one script."""

    def __init__(self, answers: list[Answer], *, limit_seconds: float = 100) -> None:
        self.producers: list[ScriptedProducer] = []
        self._answers = answers
        self.holds = Holds(limit_seconds=limit_seconds)
        self.publisher = ReliablePublisher(self._build, holds=self.holds)

    def _build(self) -> Any:
        self.producers.append(ScriptedProducer(self._answers))
        return self.producers[-1]

    @property
    def stopped(self) -> list[bool]:
        """For each producer, in the order they were built."""
        return [producer.is_stopped for producer in self.producers]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.publisher.stop()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "REBUILD_SECONDS", 0)


@pytest.mark.parametrize(
    "answers",
    [
        [MessageSizeTooLargeError()],
        [PolicyViolationError()],
        [UnknownError(), UnknownError(), UnknownError()],
        [UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")],
    ],
)
async def test_a_rejected_record_is_not_an_outage(answers: list[Answer]) -> None:
    async with Bench(answers) as bench:
        with pytest.raises(RecordRefusedError, match="topic results"):
            await bench.publisher.publish(RECORD)
        assert not bench.holds.causes


@pytest.mark.parametrize("error", [NotEnoughReplicasError(), UnknownError(), TopicAuthorizationFailedError()])
async def test_a_record_is_sent_again_after_an_error_that_can_be_corrected(error: KafkaError) -> None:
    async with Bench([error, ACKED]) as bench:
        assert (await bench.publisher.publish(RECORD)).offset == ACKED.offset


async def test_a_topic_that_takes_no_record_is_an_error_where_there_is_a_fallback() -> None:
    async with Bench([TopicAuthorizationFailedError()]) as bench:
        with pytest.raises(RecordRefusedError):
            await bench.publisher.publish(RECORD, refusable=True)


async def test_a_topic_that_takes_no_record_is_held_up_to_the_limit() -> None:
    async with Bench([TopicAuthorizationFailedError()], limit_seconds=0) as bench:
        with pytest.raises(HoldExpiredError):
            await bench.publisher.publish(RECORD)


async def test_a_replaced_producer_is_closed_by_the_last_record_that_waits_for_it() -> None:
    answered = asyncio.Event()
    async with Bench([answered, NotEnoughReplicasError(), ACKED]) as bench:
        slow = asyncio.create_task(bench.publisher.publish(RECORD))
        await asyncio.sleep(0)
        await bench.publisher.publish(RECORD)
        assert bench.stopped == [False, False]
        answered.set()
        assert (await slow).offset == ACKED.offset
        assert bench.stopped == [True, False]
    assert bench.stopped == [True, True]
