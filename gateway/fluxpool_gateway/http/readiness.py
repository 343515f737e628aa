"""Readiness: whether this process can accept requests and show their tasks; what `/readyz` says, part by part.

Also holds the partition counts that submissions need, since both come from the same request to a broker.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict

from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.task_store import Heartbeat, Quarantine
from fluxpool_transport.kafka import KafkaMetadata, KafkaUnavailableError, TopicMetadata, explain

READ_INTERVAL_SECONDS: Final = 1.0
MAX_ANSWER_AGE_SECONDS: Final = 5.0
"""A request, its timeout (2 s) and a moment more: an older answer means that the reading itself hangs."""
MAX_HEARTBEAT_AGE_SECONDS: Final = 10.0
"""The projector beats every second, but one batch of a busy machine may take some."""
MAX_BEHIND_SECONDS: Final = 30.0
"""Longer without a break, clients had better use another gateway."""

logger = structlog.stdlib.get_logger(__name__)


class PartReadiness(BaseModel):
    """One part."""

    model_config = ConfigDict(frozen=True)

    ready: bool
    detail: str


class Readiness(BaseModel):
    """All parts; ready when each is."""

    model_config = ConfigDict(frozen=True)

    ready: bool
    parts: dict[str, PartReadiness]


class BrokerWatch:
    """Reads the task topics' metadata every second, for readiness and for the number of partitions."""

    def __init__(self, metadata: KafkaMetadata, topics: Iterable[str]) -> None:
        self._metadata = metadata
        self._topics = tuple(topics)
        self._counts: dict[str, int] = {}
        self._failure: str | None = "not read yet"
        self._answered_at = 0.0

    def partition_count(self, topic: str) -> int | None:
        """How many partitions the topic had in the latest answer; None before the first."""
        return self._counts.get(topic)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self._read()
            await asyncio.sleep(READ_INTERVAL_SECONDS)

    async def _read(self) -> None:
        failure = None
        try:
            described = await self._metadata.topics(self._topics)
        except KafkaUnavailableError as error:
            failure = str(error)
        else:
            for topic, answer in described.items():
                if isinstance(answer, TopicMetadata):
                    self._counts[topic] = len(answer.partitions)
                else:
                    failure = f"{topic}: {explain(answer)}"
        if failure != self._failure:
            logger.info("broker_readiness_changed", failure=failure)
        self._failure = failure
        self._answered_at = asyncio.get_running_loop().time()

    def why_not_ready(self) -> str | None:
        """Why requests would be refused; None when a broker described the task topics lately."""
        is_old = asyncio.get_running_loop().time() - self._answered_at > MAX_ANSWER_AGE_SECONDS
        return self._failure or ("no broker answers" if is_old else None)


async def read_readiness(watch: BrokerWatch, store: TaskStoreReader) -> Readiness:
    """The state of every part now."""
    failure = watch.why_not_ready()
    queue = PartReadiness(ready=failure is None, detail=failure or "a broker knows the task topics")
    try:
        heartbeat, quarantine = await store.heartbeat(), await store.quarantine()
    except StoreUnavailableError as error:
        projection = PartReadiness(ready=False, detail=str(error))
    else:
        failure = _why_behind(heartbeat, now_ms=time.time_ns() // 1_000_000)
        lag_records = 0 if heartbeat is None else heartbeat.lag_records
        detail = failure or f"{lag_records} records to read{_passed_over(quarantine)}"
        projection = PartReadiness(ready=failure is None, detail=detail)
    parts = {"queue": queue, "projection": projection}
    return Readiness(ready=all(part.ready for part in parts.values()), parts=parts)


def _why_behind(heartbeat: Heartbeat | None, *, now_ms: int) -> str | None:
    """Why the store does not show what Kafka has; None when it does."""
    if heartbeat is None:
        return "no projector has run yet"
    silent_seconds = (now_ms - heartbeat.beat_at_ms) / 1000
    if silent_seconds > MAX_HEARTBEAT_AGE_SECONDS:
        return f"the projector is silent since {silent_seconds:.0f} s; see its log"
    if heartbeat.caught_up_at_ms is None:
        to_read = f"{heartbeat.lag_records} records to read"
        if heartbeat.rebuilt_because is None:
            return f"the store is being built ({to_read})"
        return f"the store is being rebuilt from Kafka ({to_read}): {heartbeat.rebuilt_because}"
    behind_seconds = (now_ms - heartbeat.caught_up_at_ms) / 1000
    if behind_seconds > MAX_BEHIND_SECONDS:
        return f"the projection is behind since {behind_seconds:.0f} s ({heartbeat.lag_records} records)"
    return None


def _passed_over(quarantine: Quarantine) -> str:
    latest = quarantine.latest
    if latest is None:
        return ""
    place = f"{latest.topic}, partition {latest.partition}, offset {latest.offset}"
    return f"; {quarantine.count} passed over that cannot be read, the latest in {place}: {latest.reason}"
