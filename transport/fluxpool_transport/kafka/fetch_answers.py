"""Answers to fetches before aiokafka looks at them: what it takes for granted there, and no consumer may be lost to.

Owns two checks that only the whole answer allows. A broker that cannot read its own log says so for the partition, and
aiokafka would ask again at once and without end: after a while the offset is given up. And a batch says where its
offsets lie, which no checksum covers: the end of the log goes along with the bytes, so that they can be compared.
Knows nothing of records.
"""

import asyncio
from typing import Any, Final, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchResponse_v0
from aiokafka.structs import TopicPartition

CORRUPT_PATIENCE_SECONDS: Final = 10.0
"""The next leader may have the batch whole; shorter than what readers of whole topics wait for progress."""
_CORRUPT_PAUSE_SECONDS: Final = 0.2
"""Other partitions of the broker wait along with the one that is asked for again."""
_UNREADABLE: Final = "the broker cannot read it from its log"


class FetchedBytes(NamedTuple):
    """What an answer holds of one partition."""

    data: bytes
    log_end: int | None = None
    """One past the last offset that the broker would give to a consumer; None when it did not say."""
    problem: str | None = None
    """Why the broker has no bytes of the offset that was asked for."""


class TolerantFetcher(fetcher.Fetcher):  # type: ignore[misc]  # aiokafka is untyped
    """Takes the place of aiokafka's fetcher."""

    def __init__(self, client: Any, subscriptions: Any, **options: Any) -> None:
        super().__init__(_CheckingClient(client), subscriptions, **options)


class _CheckingClient:
    """A consumer's client; all but answers to fetches is the client's own."""

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
            if any(part[1] == CorruptRecordException.errno for _, partitions in answer.topics for part in partitions):
                await asyncio.sleep(_CORRUPT_PAUSE_SECONDS)
        return answer

    def _checked(self, partition: TopicPartition, part: Any, now: float) -> Any:
        number, error_code, log_end, *between, data = part
        if error_code == CorruptRecordException.errno:
            if now - self._corrupt_since.setdefault(partition, now) < CORRUPT_PATIENCE_SECONDS:
                return part
            return number, 0, log_end, *between, FetchedBytes(b"", problem=_UNREADABLE)
        if error_code == 0 and data:
            self._corrupt_since.pop(partition, None)
        return number, error_code, log_end, *between, FetchedBytes(data or b"", log_end if log_end >= 0 else None)
