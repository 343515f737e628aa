"""Consumers that belong to no group, opened whatever state the brokers are in.

Owns the options that all of them share. Knows nothing of what they read.
"""

from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka import aiokafka_options, stop_consumer

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
