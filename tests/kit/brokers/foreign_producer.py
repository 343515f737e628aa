"""Write records like other producers: any codec, any time, header names that are not UTF-8.

Uses librdkafka for everything that its interface accepts, and kafka-python, uncompressed, for header names that are not
UTF-8.
"""

import asyncio
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Producer

from kit.waiting import PATIENCE

with warnings.catch_warnings():
    # kafka-python reads its message schemas by a function of importlib that Python 3.11 and 3.12 call deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaProducer

_SECONDS = 20.0 * PATIENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRecord:
    """The record to write; `headers` are names and values in bytes."""

    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp_ms: int | None = None
    compression: str = "none"

    @property
    def has_raw_names(self) -> bool:
        """Whether the name of a header is not UTF-8, which only a `RawProducer` writes."""
        return any(not _is_text(name) for name, _ in self.headers)


class _RawName(str):
    """A header name with these bytes on the wire."""

    __slots__ = ("raw",)
    raw: bytes

    def __new__(cls, raw: bytes) -> Self:
        name = super().__new__(cls, raw.decode("latin-1"))
        name.raw = raw
        return name

    def encode(self, *_arguments: Any) -> bytes:
        return self.raw


async def write(bootstrap_servers: str, topic: str, record: ForeignRecord, *, partition: int = 0) -> int:
    """Write one record; returns its offset once it is acknowledged."""
    send = _write_raw if record.has_raw_names else _write_text
    return await asyncio.to_thread(send, bootstrap_servers, topic, record, partition)


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


class RawProducer:
    """A kafka-python producer of records with any header names; uncompressed. Use as a context manager."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers, acks="all", linger_ms=5, max_request_size=4 * 1024 * 1024
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Return once every record is acknowledged or has failed."""
        self._producer.flush(timeout=_SECONDS)
        self._producer.close(timeout=_SECONDS)

    def send(
        self, topic: str, record: ForeignRecord, *, partition: int, on_offset: Callable[[int], None] = lambda _: None
    ) -> Any:
        """Send it; returns kafka-python's future, and `on_offset` is called from its thread."""
        sent = self._producer.send(
            topic,
            key=record.key,
            value=record.value if record.key is not None else record.value or b"",
            partition=partition,
            # Null values are not to be had here, nor a record of nothing but headers.
            headers=[(_RawName(name), value or b"") for name, value in record.headers],
            timestamp_ms=record.timestamp_ms,
        )
        return sent.add_callback(lambda metadata: on_offset(metadata.offset))


def _write_raw(bootstrap_servers: str, topic: str, record: ForeignRecord, partition: int) -> int:
    with RawProducer(bootstrap_servers) as producer:
        return int(producer.send(topic, record, partition=partition).get(timeout=_SECONDS).offset)


def _write_text(bootstrap_servers: str, topic: str, record: ForeignRecord, partition: int) -> int:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "compression.type": record.compression})
    acknowledged: list[Any] = []
    extra = {} if record.timestamp_ms is None else {"timestamp": record.timestamp_ms}
    producer.produce(
        topic,
        record.value,
        record.key,
        partition=partition,
        headers=[(name.decode(), value) for name, value in record.headers],
        on_delivery=lambda error, message: acknowledged.append(error or message),
        **extra,
    )
    assert producer.flush(_SECONDS) == 0
    if isinstance(acknowledged[0], KafkaError):
        raise KafkaException(acknowledged[0])
    return int(acknowledged[0].offset())
