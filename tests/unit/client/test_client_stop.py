"""Stopping a consumer never cancels its caller and leaves no sockets or tasks, in any state of aiokafka."""

import asyncio
from typing import Self

from aiokafka.errors import KafkaConnectionError

from fluxpool_transport.kafka.client_stop import stop_consumer
from kit.waiting import wait_until


class StubbornConsumer:
    """A consumer whose `stop` fails or never ends."""

    def __init__(self, error: BaseException | None, *, hangs: bool = False) -> None:
        self.done: list[str] = []
        self._error = error
        self.may_stop = asyncio.Event()
        """Ends a stop that hangs."""
        if not hangs:
            self.may_stop.set()
        self._fetcher = None
        self._conns = {"broker": self}
        self._heartbeat_task = asyncio.create_task(asyncio.Event().wait(), name="heartbeat")

    @property
    def _client(self) -> Self:
        return self

    @property
    def _coordinator(self) -> Self:
        return self

    @property
    def _writer(self) -> Self:
        return self

    @property
    def transport(self) -> Self:
        return self

    def abort(self) -> None:
        self.done.append("abort")

    async def stop(self) -> None:
        self.done.append("stop")
        await self.may_stop.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        self.done.append("close")


async def test_a_cancelled_fetch_is_not_the_callers_cancellation_and_connections_are_closed() -> None:
    consumer = StubbornConsumer(asyncio.CancelledError())
    assert await stop_consumer(consumer) is None
    assert consumer.done == ["stop", "close"]


async def test_an_error_of_stop_is_logged_and_not_raised() -> None:
    assert isinstance(await stop_consumer(StubbornConsumer(KafkaConnectionError())), KafkaConnectionError)
    assert isinstance(await stop_consumer(StubbornConsumer(OSError())), OSError)
    assert isinstance(await stop_consumer(StubbornConsumer(None, hangs=True), deadline_seconds=0.01), TimeoutError)


async def test_the_callers_own_cancellation_waits_for_the_stop() -> None:
    consumer = StubbornConsumer(None, hangs=True)
    stopping = asyncio.create_task(stop_consumer(consumer, deadline_seconds=60))
    await wait_until(lambda: consumer.done == ["stop"], deadline_seconds=10, what="the stop to begin")
    stopping.cancel()
    for _ in range(10):  # the event loop's rounds in which a cancellation passes through any number of awaits
        await asyncio.sleep(0)
    assert (stopping.done(), consumer.done) == (False, ["stop"])
    consumer.may_stop.set()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    assert consumer.done == ["stop"]


async def test_a_stop_that_hangs_leaves_neither_connections_nor_tasks() -> None:
    consumer = StubbornConsumer(None, hangs=True)
    assert isinstance(await stop_consumer(consumer, deadline_seconds=0.01), TimeoutError)
    assert consumer.done == ["stop", "abort", "close"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_connections_are_closed_when_a_fetch_and_the_caller_are_cancelled() -> None:
    consumer = StubbornConsumer(asyncio.CancelledError())
    stopping = asyncio.create_task(stop_consumer(consumer))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    assert consumer.done == ["stop", "close"]
