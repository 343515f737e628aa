"""Checks fetch responses before aiokafka parses them, so that a damaged log cannot stop a consumer.

Owns two checks that need the whole response. For a log that the broker cannot read it answers CORRUPT_MESSAGE, and
aiokafka asks again at once, without end: here the offset is skipped after a while. And no checksum covers the base
offset of a batch: the end of the log is passed on with the bytes, to compare them. Knows nothing of records.
"""

import asyncio
from typing import Any, Final, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchResponse_v0
from aiokafka.structs import TopicPartition

CORRUPT_PATIENCE_SECONDS: Final = 10.0
"""A new leader may have an intact copy; shorter than a topic scan waits for progress (`STALL_SECONDS`)."""
_CORRUPT_PAUSE_SECONDS: Final = 0.2
"""Between two fetches of a corrupt batch; the broker's other partitions wait as well."""
_UNREADABLE: Final = "the broker cannot read it from its log"


class FetchedBytes(NamedTuple):
    """The bytes of one partition in a response."""

    data: bytes
    log_end: int | None = None
    """One past the last offset that the broker would give to a consumer; None when it did not say."""
    problem: str | None = None
    """Why the broker has no bytes of the offset that was asked for."""


class TolerantFetcher(fetcher.Fetcher):  # type: ignore[misc]  # aiokafka is untyped
    """Replaces aiokafka's fetcher."""

    def __init__(self, client: Any, subscriptions: Any, **options: Any) -> None:
        super().__init__(_CheckingClient(client), subscriptions, **options)


class _CheckingClient:
    """A consumer's client that checks fetch responses; everything else is the client's own."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._corrupt_since: dict[TopicPartition, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        answer = await self._client.send(node_id, request, **options)
        if answer.API_KEY == FetchResponse_v0.API_KEY:
            now = asyncio.get_running_loop().time()
            answer.topics = [
                (topic, [self._checked(TopicPartition(topic, part[0]), part, now) for part in partitions])
                for topic, partitions in answer.topics
            ]
            # One response for all partitions of this broker: pausing here delays them, too, but not to pause would make
            # aiokafka ask for the corrupt one thousands of times a second.
            if any(part[1] == CorruptRecordException.errno for _, partitions in answer.topics for part in partitions):
                await asyncio.sleep(_CORRUPT_PAUSE_SECONDS)
        return answer

    def _checked(self, partition: TopicPartition, part: Any, now: float) -> Any:
        number, error_code, log_end, *between, data = part
        if error_code == CorruptRecordException.errno:
            if now - self._corrupt_since.setdefault(partition, now) < CORRUPT_PATIENCE_SECONDS:
                return part
            # The time is kept: the next batch may be corrupt as well, and must not cost the whole patience again.
            return number, 0, log_end, *between, FetchedBytes(b"", problem=_UNREADABLE)
        if error_code == 0 and data:
            self._corrupt_since.pop(partition, None)
        return number, error_code, log_end, *between, FetchedBytes(data or b"", log_end if log_end >= 0 else None)
