"""Stops aiokafka's consumers and producers within a deadline, in any state of the brokers.

`AIOKafkaConsumer.stop` cancels its fetches and awaits them. A fetch in a retry pause ends with that cancellation, which
then looks like the caller's own. And `stop` of either client waits without a limit for brokers that do not answer; a
second call does nothing, so the tasks and sockets that are left are closed here.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.errors import KafkaConnectionError

CLOSE_DEADLINE_SECONDS: Final = 2.0
"""For closing after the sockets were aborted: only this process's own tasks are left, which take no time."""


async def stop_consumer(consumer: Any, *, deadline_seconds: float = 2.0) -> Exception | None:
    """Leave the group, if it is in one, and disconnect; returns the error of a stop that was not clean.

    Raises only the caller's own cancellation, once the consumer is stopped.
    """
    return await _to_the_end(lambda: _stop(consumer, "_client", _consumer_tasks, deadline_seconds))


async def stop_producer(producer: Any, *, deadline_seconds: float = 5.0) -> Exception | None:
    """Wait for pending records up to the deadline and disconnect; returns the error of a stop that was not clean.

    A record that is still pending then fails with `KafkaConnectionError`: whether the brokers have it is not known.
    Raises only the caller's own cancellation, once the producer is stopped.
    """
    error = await _to_the_end(lambda: _stop(producer, "client", _producer_tasks, deadline_seconds))
    if error is not None:
        # The sender task is cancelled, so no one else completes these: without this their senders wait for ever.
        producer._message_accumulator.fail_all(KafkaConnectionError("the producer was closed"))  # noqa: SLF001
    return error


async def _to_the_end(stop: Callable[[], Awaitable[Exception | None]]) -> Exception | None:
    # In its own task: a fetch's CancelledError must not look like the caller's, nor the caller's end this half-way.
    stopping = asyncio.ensure_future(stop())
    try:
        await asyncio.wait({stopping})
    except asyncio.CancelledError:
        # Bounded by the two deadlines; a client that is left half stopped keeps its sockets and group membership.
        await asyncio.wait({stopping})
        raise
    return stopping.result()


async def _stop(
    client: Any, connections_name: str, tasks_of: Callable[[Any], list[Any]], deadline_seconds: float
) -> Exception | None:
    error: Exception | None = None
    try:
        async with asyncio.timeout(deadline_seconds):
            await client.stop()
    except asyncio.CancelledError:
        pass  # of a fetch that `stop` cancelled and awaited: this task itself is never cancelled
    except Exception as problem:  # noqa: BLE001 - whatever it is, it is only reported
        error = problem
    else:
        return None
    connections = getattr(client, connections_name)
    if error is not None:
        # A socket whose peer does not read is only closed once its buffer is written, unless it is aborted.
        for connection in list(connections._conns.values()):  # noqa: SLF001
            if connection._writer is not None:  # noqa: SLF001
                connection._writer.transport.abort()  # noqa: SLF001
        # After the abort, so that a task which handles its cancellation cannot write to the broker again.
        for task in tasks_of(client):
            if task is not None:
                task.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_DEADLINE_SECONDS):
            await connections.close()
    return error


def _consumer_tasks(consumer: Any) -> list[Any]:
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001
    names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
    tasks = [getattr(coordinator, name, None) for name in names]
    if fetcher is not None:
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]  # noqa: SLF001
    return tasks


def _producer_tasks(producer: Any) -> list[Any]:
    return [producer._sender.sender_task] if producer._sender is not None else []  # noqa: SLF001
