"""Topics, their partitions and the offsets of their logs, as the brokers describe them: the one reader of metadata.

Owns the requests and the client for them. Knows nothing of consumer groups; `lag` reads what those committed. A
consumer or producer that is connected to the partitions' leaders anyway may ask them itself.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaAdmin, KafkaUnavailableError, explain, has_code
from fluxpool_transport.kafka.clients import KafkaCredentialsError

K = TypeVar("K")

PartitionKey = tuple[str, int]
"""Topic and partition number."""

REQUEST_SECONDS: Final = 10.0


class TopicError(Exception):
    """A topic cannot be created, read or used; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """One topic; equal to another one with the same id and partitions, whatever their leaders."""

    partitions: tuple[int, ...]
    """Their numbers, ascending."""
    topic_id: str | None = None
    """Another one after the topic was deleted and created again; None with brokers older than topic ids (KIP-516)."""
    leaderless: tuple[int, ...] = field(default=(), compare=False)
    """The partitions without a leader."""


class KafkaMetadata:
    """Asks the brokers of one cluster; connects at the first request. Several requests may run at once.

    Every method raises `KafkaUnavailableError` when no broker answers within `timeout_seconds`, and what
    `KafkaAdmin.open` raises. A `KafkaException` in place of an answer is that of one topic or partition.
    """

    def __init__(
        self, connection: KafkaConnection, *, client_id: str, timeout_seconds: float = REQUEST_SECONDS
    ) -> None:
        self._connection = connection
        self._client_id = client_id
        self._timeout_seconds = timeout_seconds
        self._admin: KafkaAdmin | None = None
        self._opening = asyncio.Lock()

    async def admin(self) -> KafkaAdmin:
        """The admin client, for other requests; opened when there is none."""
        # Requests that start together share one client; opening takes long with OAUTHBEARER.
        async with self._opening:
            self._admin = self._admin or await KafkaAdmin.open(self._connection, client_id=self._client_id)
            return self._admin

    def reconnect(self) -> None:
        """Open a new client for the next request."""
        self._admin = None

    async def topics(self, names: Iterable[str]) -> dict[str, TopicMetadata | KafkaException]:
        """Describe topics; never creates one."""
        topics = list(dict.fromkeys(names))
        if not topics:
            return {}
        described = await self._ask(
            lambda client: client.describe_topics(
                TopicCollection(topic_names=topics), request_timeout=self._timeout_seconds
            )
        )
        return {
            topic: answer if isinstance(answer, KafkaException) else _topic_metadata(answer)
            for topic, answer in described.items()
        }

    async def existing(self, names: Iterable[str]) -> dict[str, TopicMetadata | None]:
        """Describe topics, None for one that does not exist; raises `TopicError` for one that may not be described."""
        found: dict[str, TopicMetadata | None] = {}
        for name, answer in (await self.topics(names)).items():
            if isinstance(answer, TopicMetadata):
                found[name] = answer
            elif has_code(answer, KafkaError.UNKNOWN_TOPIC_OR_PART):
                found[name] = None
            else:
                raise undescribed(name, answer) from answer
        return found

    async def topic_id(self, name: str) -> str | None:
        """The id of a topic; None when it is unknown.

        The topic does not exist or may not be described, no broker answers in time, or they are older than topic ids.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = (await self.topics([name]))[name]
        except (TimeoutError, KafkaUnavailableError, KafkaCredentialsError):
            return None
        return answer.topic_id if isinstance(answer, TopicMetadata) else None

    async def offsets(self, keys: Iterable[PartitionKey], spec: OffsetSpec) -> dict[PartitionKey, Any]:
        """An offset of each partition's log, as a read-committed reader sees it; a `KafkaException` in its place.

        The latest one is the last stable offset. None: the leader did not answer in time, or no record is as young as
        the `OffsetSpec` asks for.
        """
        request = {TopicPartition(topic, number): spec for topic, number in keys}
        if not request:
            return {}
        answers = await self._ask(
            lambda client: client.list_offsets(
                request, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=self._timeout_seconds
            )
        )
        return {(item.topic, item.partition): _offset(answer) for item, answer in answers.items()}

    async def _ask(self, request: "Callable[[AdminClient], dict[K, Future[Any]]]") -> dict[K, Any]:
        admin = await self.admin()
        try:
            return await admin.results(request(admin.client))
        except BaseException:
            # Also when a deadline cancels: librdkafka asks a dead controller until its metadata are a minute old.
            # Another request may have replaced it by now.
            if self._admin is admin:
                self._admin = None
            raise


def undescribed(topic: str, refusal: KafkaException) -> TopicError:
    """The error about a topic that the brokers do not describe."""
    return TopicError(f"topic {topic}: cannot be described: {explain(refusal)}; the Kafka user needs DESCRIBE on it")


def _topic_metadata(described: Any) -> TopicMetadata:
    topic_id = described.topic_id
    is_known = topic_id.get_most_significant_bits() or topic_id.get_least_significant_bits()
    return TopicMetadata(
        partitions=tuple(sorted(item.id for item in described.partitions)),
        topic_id=str(topic_id) if is_known else None,
        # librdkafka gives a broker without address, id -1, when there is no leader.
        leaderless=tuple(item.id for item in described.partitions if item.leader is None or item.leader.id < 0),
    )


def _offset(answer: Any) -> Any:
    if isinstance(answer, KafkaException):
        return answer
    # librdkafka gives a negative offset, without an error, when some leaders answered in time and others did not.
    return None if answer.offset < 0 else int(answer.offset)
