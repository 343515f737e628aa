"""A used idempotency key with another body: what the store knows goes before what this process accepted."""

import json
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from fluxpool_contract.derived import task_digest
from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_contract.topics import TopicNames
from fluxpool_gateway.recent_tasks import RecentTasks
from fluxpool_gateway.submission import PATH, Submission
from fluxpool_transport.partition_choice_watch import PartitionChooser

PROMPTS = ("one", "two")


class Log:
    """Takes every record and keeps it."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, bytes, bytes, Sequence[tuple[str, bytes]]]] = []

    def send(
        self, *, topic: str, partition: int, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> Awaitable[int]:
        self.records.append((topic, partition, key, value, headers))

        async def acknowledged() -> int:
            return len(self.records) - 1

        return acknowledged()


class Gateway:
    """One process's route, and the store that all processes share."""

    def __init__(self) -> None:
        self.log = Log()
        self.stored: bytes | None = None
        self._route = Submission(
            producer=self.log,
            chooser=PartitionChooser(KafkaConnection(bootstrap_servers=("localhost:9092",)), {}),
            partition_counts=lambda _topic: 1,
            recent=RecentTasks(time.monotonic),
            stored_digest=self._stored_digest,
            topics=TopicNames(),
            public_url=None,
        )

    async def _stored_digest(self, _request_id: str) -> str | None:
        return None if self.stored is None else task_digest(self.stored)

    async def submit(self, prompt: str) -> int:
        """The status of the answer to a request with always the same key."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps({"prompt": prompt}).encode(), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"host", b"gateway"), (b"idempotency-key", b"the-same-key")]
        scope = {"type": "http", "method": "POST", "path": PATH, "scheme": "http", "headers": headers}
        await self._route(scope, receive, send)
        return int(sent[0]["status"])


async def test_what_this_process_accepted_is_known_before_the_store_knows_it() -> None:
    gateway = Gateway()
    assert [await gateway.submit(prompt) for prompt in ("one", "two", "one")] == [202, 422, 202]
    assert len(gateway.log.records) == 2


@pytest.mark.parametrize("mine", PROMPTS)
async def test_what_another_process_accepted_first_stands_as_soon_as_the_store_knows_it(mine: str) -> None:
    gateway, other = Gateway(), Gateway()
    [theirs] = set(PROMPTS) - {mine}
    assert await other.submit(theirs) == 202
    assert await gateway.submit(mine) == 202, "nobody can know yet"
    gateway.stored = other.log.records[0][3]
    assert [await gateway.submit(prompt) for prompt in (mine, theirs)] == [422, 202]
