"""Every commit of a group, from Kafka's offsets topic; and a topic reader that continues from its last position.

A new coordinator may return an older offset for a moment, so a complete history needs the log of commits itself. Joins
no group and changes nothing.
"""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, Message, TopicPartition

from kit.waiting import PATIENCE

OFFSETS_TOPIC: Final = "__consumer_offsets"
REQUEST_SECONDS: Final = 5.0 * PATIENCE
READ_SECONDS: Final = 15.0 * PATIENCE
RECONNECT_MS: Final = 1000
"""The library's ten seconds would show in every time that is measured with this."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One committed offset."""

    topic: str
    partition: int
    offset: int


class TopicTail:
    """Reads a topic from its last position; a read fetches only new records."""

    def __init__(self, bootstrap_servers: str, topic: str, *, only_for: str | None = None) -> None:
        """`only_for` restricts the partitions to that of this group's commits."""
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._only_for = only_for
        self._next: dict[int, int] = {}
        self._consumer = self._open()

    def read_to_end(self) -> Iterator[Message]:
        """Read up to the end at the time of the call; nothing while the topic does not exist.

        Raises `KafkaException`, `LookupError` or `TimeoutError`; what was yielded before is not yielded again.
        """
        if not self._next:
            self._begin()
        ends = {number: self._end_of(number) for number in self._next}
        deadline = time.monotonic() + READ_SECONDS
        while any(self._next[number] < end for number, end in ends.items()):
            if time.monotonic() >= deadline:
                self._restart()
                raise TimeoutError(f"the end of {self._topic} was not reached")
            for message in self._consumer.consume(num_messages=1000, timeout=0.2):
                # A restarted reader gets records again.
                if message.error() is None and message.offset() >= self._next[message.partition()]:
                    self._next[message.partition()] = message.offset() + 1
                    yield message

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _open(self) -> Any:
        return Consumer(
            {
                "bootstrap.servers": self._bootstrap_servers,
                # librdkafka requires one; only a subscription or a commit would use it.
                "group.id": "unused",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "reconnect.backoff.max.ms": RECONNECT_MS,
                # Broker outages are expected here.
                "log_level": 0,
            }
        )

    def _begin(self) -> None:
        known = self._consumer.list_topics(self._topic, timeout=REQUEST_SECONDS).topics[self._topic].partitions
        partitions = list(known)
        if partitions and self._only_for is not None:
            partitions = [_hash_of(self._only_for) % len(partitions)]
        self._next = dict.fromkeys(partitions, 0)
        self._assign()

    def _restart(self) -> None:
        """Continue with another client: after a leader lost and regained its role, one was seen to fetch no more."""
        self._consumer.close()
        self._consumer = self._open()
        self._assign()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, number, begin) for number, begin in self._next.items()])

    def _end_of(self, number: int) -> int:
        bounds = self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), timeout=REQUEST_SECONDS)
        if bounds is None:
            raise TimeoutError(f"the end of {self._topic} was not returned")
        return int(bounds[1])


class CommitLog:
    """The commits of one group in the order in which the brokers accepted them."""

    def __init__(self, bootstrap_servers: str, group: str) -> None:
        self._group = group
        self._tail = TopicTail(bootstrap_servers, OFFSETS_TOPIC, only_for=group)

    def read_to_end(self) -> Iterator[Commit]:
        """Commits since the last read; raises the errors of `TopicTail.read_to_end`."""
        for message in self._tail.read_to_end():
            commit = commit_of(message.key(), message.value(), group=self._group)
            if commit is not None:
                yield commit

    def close(self) -> None:
        """Close the connections."""
        self._tail.close()


def commit_of(key: bytes | None, value: bytes | None, *, group: str) -> Commit | None:
    """The commit of that group in a record of the offsets topic; None when it is something else.

    The schemas are Kafka's `OffsetCommitKey` and the beginning of `OffsetCommitValue`, which all its versions share.
    """
    if key is None or value is None:
        return None
    (version,) = struct.unpack_from(">h", key)
    if version > 1:
        return None
    owner, at = _text(key, 2)
    topic, at = _text(key, at)
    (partition,) = struct.unpack_from(">i", key, at)
    (offset,) = struct.unpack_from(">q", value, 2)
    return Commit(topic=topic, partition=partition, offset=offset) if owner == group else None


def _text(data: bytes, at: int) -> tuple[str, int]:
    """A string, and the position after it."""
    (length,) = struct.unpack_from(">h", data, at)
    end = at + 2 + length
    return data[at + 2 : end].decode(), end


def _hash_of(group: str) -> int:
    """The absolute value of Java's `String.hashCode`, by which Kafka chooses the partition."""
    value = 0
    for (unit,) in struct.iter_unpack(">H", group.encode("utf-16-be")):
        value = (value * 31 + unit) & 0xFFFFFFFF
    return value if value < 0x80000000 else 0x100000000 - value
