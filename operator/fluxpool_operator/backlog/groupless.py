"""Consumers that belong to no group: opened and closed, whatever state the brokers are in.

Owns the options that all of them share. Knows nothing of what they read.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_transport.kafka_clients import aiokafka_options

log = structlog.get_logger(__name__)

_STOP_SECONDS: Final = 2.0
_UNSUBSCRIBE_SECONDS: Final = 0.05
_OPTIONS: Final = {
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
}


async def open_consumer(connection: KafkaConnection, *, client_id: str, options: Mapping[str, Any]) -> Any:
    """A started consumer without partitions; raises aiokafka's `KafkaError`, `KafkaCredentialsError` or `OSError`."""
    consumer = AIOKafkaConsumer(**_OPTIONS, **options, **aiokafka_options(connection, client_id=client_id))
    try:
        await consumer.start()
    except BaseException:
        await stop_consumer(consumer)
        raise
    return consumer


async def stop_consumer(consumer: Any) -> None:
    """Close it, within seconds even when no broker answers."""
    # In a task of its own: aiokafka's `stop` may end with the cancellation of a fetch, which is none of the caller's.
    stopping = asyncio.create_task(_stop(consumer), name="consumer-stop")
    try:
        await asyncio.wait({stopping})
    except asyncio.CancelledError:
        await asyncio.wait({stopping})
        raise
    if not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.debug("consumer_not_stopped", error=str(error) or type(error).__name__)


async def _stop(consumer: Any) -> None:
    # A fetch that waits to be tried again would break `stop` off half way; without partitions it ends by itself.
    consumer.unsubscribe()
    await asyncio.sleep(_UNSUBSCRIBE_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_SECONDS):
            await consumer.stop()
