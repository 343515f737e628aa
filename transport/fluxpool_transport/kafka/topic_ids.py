"""Which topic stands behind a name: one that was deleted and made again has another id.

Owns the question and the client for it. Knows nothing of what follows from an answer.
"""

import asyncio
from typing import Final

from confluent_kafka import KafkaException, TopicCollection

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaAdmin, KafkaUnavailableError
from fluxpool_transport.kafka.clients import KafkaCredentialsError

_DEADLINE_SECONDS: Final = 10.0


class TopicIds:
    """Asks for the ids of topics; one instance serves all who ask, one at a time."""

    def __init__(self, connection: KafkaConnection, *, client_id: str) -> None:
        self._connection = connection
        self._client_id = client_id
        self._admin: KafkaAdmin | None = None
        self._asking = asyncio.Lock()

    async def ask(self, topic: str) -> str | None:
        """The topic's id; None when nobody tells.

        No broker answers in time, there is no such topic, it may not be described, or the brokers are older than ids.
        """
        async with self._asking:
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    return await self._ask(topic)
            except (TimeoutError, KafkaUnavailableError, KafkaCredentialsError):
                return None

    async def _ask(self, topic: str) -> str | None:
        admin, self._admin = self._admin, None
        admin = admin or await KafkaAdmin.open(self._connection, client_id=self._client_id)
        described = await admin.settle(
            admin.client.describe_topics(TopicCollection([topic]), request_timeout=_DEADLINE_SECONDS)
        )
        # Only a client that answered is kept: librdkafka asks a dead controller until its metadata are a minute old.
        self._admin = admin
        answer = described[topic]
        if isinstance(answer, KafkaException):
            return None
        number = (answer.topic_id.get_most_significant_bits(), answer.topic_id.get_least_significant_bits())
        return None if number == (0, 0) else str(answer.topic_id)
