"""Stopping aiokafka's consumers in any state of the brokers, without harm to whoever stops them.

`AIOKafkaConsumer.stop` cancels its fetches and awaits them. One that waits to be tried again ends with that
cancellation, which then looks like the caller's own: a task that stopped its consumer would end in silence, and
connections stay open.
"""

import asyncio
from typing import Any


async def stop_consumer(consumer: Any, *, deadline_seconds: float = 2.0) -> Exception | None:
    """Leave the group, if it is in one, and disconnect; returns what was in the way, None when nothing was.

    Raises only the caller's own cancellation, once the consumer is stopped.
    """
    stopping = asyncio.create_task(_stop(consumer, deadline_seconds), name="consumer-stop")
    try:
        await asyncio.wait({stopping})
    except asyncio.CancelledError:
        await asyncio.wait({stopping})
        raise
    return stopping.result()


async def _stop(consumer: Any, deadline_seconds: float) -> Exception | None:
    try:
        async with asyncio.timeout(deadline_seconds):
            await consumer.stop()
    except asyncio.CancelledError:
        # Of a fetch: nobody cancels this task. The group has been left by then, and what `stop` does last it would not
        # do when it is called again.
        await consumer._client.close()  # noqa: SLF001
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing is left to do about it but to tell
        return error
    return None
