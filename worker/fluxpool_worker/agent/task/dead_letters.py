"""Writing dead letters, also those of records that no topic will take.

Owns the way to a record on the dead-letter topic: where the original does not fit or is refused, its bytes go to the
object store and the dead letter points there.
"""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.kafka import MAX_DEAD_LETTER_BYTES, TopicNames
from fluxpool_transport.storage import ObjectStore, StorageUnavailableError
from fluxpool_worker.agent.task.holds import HoldCause, Holds
from fluxpool_worker.agent.task.outgoing_records import Failure, WorkerIdentity, dead_letter_record
from fluxpool_worker.agent.task.publisher import OutgoingRecord, RecordRefusedError, ReliablePublisher

RECORD_OVERHEAD_BYTES: Final = 1024
"""What Kafka adds to a record and its batch; a few bytes for each header and under 100 for the rest."""

SHORT_TEXT_BYTES: Final = 200
"""Of a message, where the whole one is refused."""

log = structlog.get_logger(__name__)


class DeadLetterWriter:
    """Publishes dead letters of one worker."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        store_cause: HoldCause,
        publisher: ReliablePublisher,
        holds: Holds,
        topics: TopicNames,
    ) -> None:
        self._store = store
        self._store_cause = store_cause
        self._publisher = publisher
        self._holds = holds
        self._topics = topics

    async def write(
        self, record: ConsumerRecord, failure: Failure, *, request_id: str | None, identity: WorkerIdentity
    ) -> bool:
        """Return when the dead letter is acknowledged, False when the topic refuses the shortest one, too.

        Raises `HoldExpiredError`.
        """
        log.warning(
            "task_dead_lettered",
            request_id=request_id,
            code=failure.code,
            disposition=failure.disposition,
            partition=record.partition,
            offset=record.offset,
        )

        def letter(object_key: str | None = None, why: Failure = failure) -> OutgoingRecord:
            return dead_letter_record(
                record,
                why,
                request_id=request_id,
                identity=identity,
                failed_at=datetime.now(UTC),
                topics=self._topics,
                object_key=object_key,
            )

        whole = letter()
        if record_bytes(whole) <= MAX_DEAD_LETTER_BYTES:
            try:
                await self._publisher.publish(whole, refusable=True)
            except RecordRefusedError as error:
                log.warning("dead_letter_refused", request_id=request_id, error=str(error))
            else:
                return True
        key = await self._keep(record)
        short = replace(failure, message=cut_text(failure.message, SHORT_TEXT_BYTES), stack=None)
        for pointer in (letter(key), replace(letter(key, short), key=None, value=b"")):
            try:
                await self._publisher.publish(pointer)
            except RecordRefusedError as error:
                log.error("dead_letter_refused", request_id=request_id, object=key, error=str(error))  # noqa: TRY400
            else:
                return True
        return False

    async def _keep(self, record: ConsumerRecord) -> str:
        """Store the original; returns the key of its value. The headers lie beside it."""
        key = original_key(record)
        headers = [
            [name, None if value is None else base64.b64encode(value).decode()] for name, value in record.headers
        ]
        await self._put(f"{key}.headers.json", json.dumps(headers).encode(), content_type="application/json")
        await self._put(key, record.value or b"", content_type="application/octet-stream")
        return key

    async def _put(self, key: str, payload: bytes, *, content_type: str) -> None:
        await self._holds.through(
            lambda: self._store.put_if_absent(key, payload, content_type=content_type),
            cause=self._store_cause,
            retry_on=(StorageUnavailableError,),
        )


def original_key(record: ConsumerRecord) -> str:
    """Where the value of a record that is too large lies; with its timestamp, for a topic may be made anew."""
    return f"_dead-letters/{record.topic}/{record.partition}/{record.offset}-{max(0, record.timestamp)}"


def record_bytes(record: OutgoingRecord) -> int:
    """Upper bound of what the record takes on a topic."""
    headers = sum(len(name.encode(errors="replace")) + len(value) + 10 for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + RECORD_OVERHEAD_BYTES
