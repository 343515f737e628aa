"""When the producer is replaced, and when not, with a stand-in for the client library."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError

from fluxpool_gateway.tasks import producer as task_producer
from fluxpool_gateway.tasks.producer import DeliveryError, TaskProducer
from kit.waiting import wait_until


class Library:
    """Stand-in for the client library; has every producer that was created."""

    def __init__(self) -> None:
        self.made: list[Client] = []
        self.fault: Exception | None = None

    def __call__(self, configuration: dict[str, Any]) -> "Client":
        self.made.append(Client(self, configuration["error_cb"]))
        return self.made[-1]


class Client:
    """One producer, whose delivery reports the test decides."""

    def __init__(self, library: Library, on_error: Callable[[Any], None]) -> None:
        self.on_error = on_error
        self.unreported: list[Callable[[Any, Any], None]] = []
        self._library = library
        self._due: list[tuple[Callable[[Any, Any], None], Any]] = []
        self.is_closed = False

    def produce(self, *_record: Any, on_delivery: Callable[[Any, Any], None], **_more: Any) -> None:
        self.unreported.append(on_delivery)

    def report(self, error: KafkaError) -> None:
        """Report the oldest record as failed."""
        self._due.append((self.unreported.pop(0), error))

    def poll(self, seconds: float) -> int:
        assert seconds == 0, "the event loop waits"
        if self._library.fault is not None:
            raise self._library.fault
        count = len(self._due)
        while self._due:
            on_delivery, error = self._due.pop(0)
            on_delivery(error, None)
        return count

    def purge(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        self.is_closed = True

    def __len__(self) -> int:
        return len(self.unreported) + len(self._due)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(task_producer, "Producer", made)
    return made


@pytest.fixture
async def failures() -> list[str]:
    return []


@pytest.fixture
async def producer(library: Library, failures: list[str]) -> AsyncIterator[TaskProducer]:
    started = TaskProducer({}, deadline_seconds=30, on_failure=lambda: failures.append("failed"))
    started.start()
    yield started
    for client in library.made:
        while client.unreported:
            client.report(KafkaError(KafkaError._PURGE_QUEUE))  # noqa: SLF001 - the public name of a local error code
    await started.stop()


def send(producer: TaskProducer) -> asyncio.Future[int]:
    return producer.send(topic="t", partition=0, key=b"k", value=b"v", headers=[])


async def fail(client: Client, future: asyncio.Future[int]) -> None:
    client.report(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER))
    with pytest.raises(DeliveryError):
        await future


async def test_reports_of_a_replaced_producer_do_not_replace_its_successor(
    library: Library, producer: TaskProducer
) -> None:
    sent = [send(producer) for _ in range(3)]
    (first,) = library.made
    await fail(first, sent[0])
    assert not send(producer).done()
    assert len(library.made) == 2
    for future in sent[1:]:
        await fail(first, future)
    first.on_error(FatalError())
    assert not send(producer).done()
    assert len(library.made) == 2
    await wait_until(lambda: first.is_closed, deadline_seconds=10, what="the end of the replaced producer")
    assert not library.made[1].is_closed


async def test_a_fatal_error_of_the_current_producer_replaces_it(library: Library, producer: TaskProducer) -> None:
    library.made[0].on_error(FatalError())
    assert not send(producer).done()
    assert len(library.made) == 2


async def test_the_process_is_notified_when_delivery_reports_can_no_longer_be_processed(
    library: Library, producer: TaskProducer, failures: list[str]
) -> None:
    sent = send(producer)
    assert not sent.done()
    library.fault = ValueError("never thought of")
    await wait_until(lambda: failures == ["failed"], deadline_seconds=10, what="the failure")
    library.fault = None
    # No report of it will come, and the end of the producer need not wait for one.
    sent.cancel()


class FatalError:
    """An error of the client as a whole."""

    def fatal(self) -> bool:
        return True

    def code(self) -> int:
        return int(KafkaError._FATAL)  # noqa: SLF001 - the public name of a local error code

    def name(self) -> str:
        return "_FATAL"

    def str(self) -> str:
        return "fatal"
