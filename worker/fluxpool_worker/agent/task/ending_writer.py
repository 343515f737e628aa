"""Writes endings: dead letter, then result, each acknowledged before the next.

Owns that a record which a topic refuses is replaced by a shorter one, and never waited for. Decides nothing about
tasks.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import MAX_MESSAGE_BYTES, TopicNames
from fluxpool_transport.process import fault_point
from fluxpool_worker.agent.task.dead_letters import DeadLetterWriter, record_bytes
from fluxpool_worker.agent.task.endings import Ending, shorter_results
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity, result_record
from fluxpool_worker.agent.task.publisher import RecordRefusedError, ReliablePublisher

_after_result = fault_point("agent-after-result")

log = structlog.get_logger(__name__)


class EndingWriter:
    """Publishes what is said about a worker's tasks."""

    def __init__(
        self,
        *,
        dead_letters: DeadLetterWriter,
        publisher: ReliablePublisher,
        topics: TopicNames,
        on_refused: Callable[[str], None] = lambda _topic: None,
    ) -> None:
        """`on_refused` is told of each topic that would not take the shortest record either."""
        self._dead_letters = dead_letters
        self._publisher = publisher
        self._topics = topics
        self._on_refused = on_refused

    async def write(self, record: ConsumerRecord, ending: Ending, *, identity: WorkerIdentity) -> None:
        """Return when all of it is acknowledged or refused for good; raises `HoldExpiredError`."""
        if ending.dead_letter is not None:
            kept = await self._dead_letters.write(
                record, ending.dead_letter, request_id=ending.request_id, identity=identity
            )
            if not kept:
                self._on_refused(self._topics.dead_letters)
        if ending.result is not None:
            if not await self._publish_result(ending, identity):
                self._on_refused(self._topics.results)
            _after_result()

    async def _publish_result(self, ending: Ending, identity: WorkerIdentity) -> bool:
        assert ending.result is not None  # noqa: S101 - the caller has looked
        for result in shorter_results(ending.result):
            outgoing = result_record(
                result.to_json(),
                request_id=ending.request_id,
                event_id=ending.event_id,
                envelope=ending.envelope,
                completed_at=result.completed_at or datetime.now(UTC),
                source=identity.source,
                topics=self._topics,
            )
            if record_bytes(outgoing) > MAX_MESSAGE_BYTES:
                continue
            try:
                await self._publisher.publish(outgoing)
            except RecordRefusedError as error:
                log.error("result_refused", request_id=ending.request_id, error=str(error))  # noqa: TRY400 - no bug
            else:
                return True
        return False
