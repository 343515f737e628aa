"""Writes how a record ends: retry, dead letter, result, each acknowledged before the next; then its offset.

The order keeps the promises: after a crash between two writes the record is redelivered, and its manifest says what to
write. Owns that a shorter record replaces one that a topic refuses, and that neither an outage nor an unexpected error
loses an ending. `endings` decides what is written.
"""

import base64
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.kafka import MAX_DEAD_LETTER_BYTES, MAX_MESSAGE_BYTES
from fluxpool_contract.messages import DecodedTask, GenerationResult, ProgressType
from fluxpool_contract.settings import WorkerSettings
from fluxpool_contract.tenants import NO_TENANT
from fluxpool_transport.process import Backoff, fault_point
from fluxpool_transport.storage import IdConflictError, Manifest
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.task.endings import (
    SHORT_TEXT_BYTES,
    Ending,
    Retry,
    ending_of,
    failure_from,
    result_of,
    retry_of,
    shorter_results,
)
from fluxpool_worker.agent.task.holds import Hold, HoldCause, HoldExpiredError, Holds
from fluxpool_worker.agent.task.outcome import Failed
from fluxpool_worker.agent.task.outgoing_records import (
    Failure,
    WorkerIdentity,
    dead_letter_record,
    record_bytes,
    result_record,
    retry_record,
)
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import OutgoingRecord, RecordRefusedError, ReliablePublisher
from fluxpool_worker.agent.task.task_records import TaskRecord
from fluxpool_worker.agent.task.task_store import TaskStore

_after_retry = fault_point("agent-after-retry")
_after_result = fault_point("agent-after-result")

RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0
"""Between the tries of a write that fails with an unexpected error."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class TaskMetrics(Protocol):
    """Counts how tasks leave the worker, and where their time went; `WorkerMetrics` does."""

    def count_end(self, outcome: str, seconds: float) -> None:
        """A record left the worker."""

    def count_refused(self, topic: str) -> None:
        """A topic refused even the shortest record."""

    def observe_phases(self, timings_ms: Mapping[str, float]) -> None:
        """A generation took so many milliseconds in each of its phases."""


async def _no_offset() -> None:
    """The offset is the caller's."""


@dataclass(slots=True, eq=False, kw_only=True)
class EndingWriter:
    """Writes the endings of one worker's tasks."""

    settings: WorkerSettings
    identity: WorkerIdentity
    store: TaskStore
    publisher: ReliablePublisher
    progress: ProgressPublisher
    holds: Holds
    metrics: TaskMetrics
    clock: Clock

    async def finish(
        self,
        task: TaskRecord,
        found: Manifest | IdConflictError | Failed | Failure,
        *,
        commit: Callable[[], Awaitable[None]] = _no_offset,
        ask_store: bool = True,
    ) -> str:
        """Write the ending of a task and call `commit`; returns the outcome.

        Without `ask_store` a failure ends the task whatever the store holds of it. Raises `HoldExpiredError`.
        """
        ending = await self._safely(partial(self._ending, task, found, ask_store=ask_store))
        if ending.retry is not None and (refusal := await self._write_retry(task, ending.retry)):
            ending = await self._safely(partial(self._ending, task, refusal, ask_store=ask_store))
        if ending.dead_letter is not None:
            await self._write_dead_letter(task, ending.dead_letter)
        if ending.result is not None:
            await self._write_result(task, ending.result)
            _after_result()
        # Last: after a crash before this the record is redelivered, and the writes that are missing follow.
        await commit()
        return ending.outcome

    async def _ending(
        self, task: TaskRecord, found: Manifest | IdConflictError | Failed | Failure, *, ask_store: bool
    ) -> Ending:
        """By way of a retry topic if the verdict says so; else the terminal one, for which a failure asks the store."""
        now = self.clock.now()
        if isinstance(found, Failed):
            retry = retry_of(
                found,
                deadline=task.envelope.deadline,
                now=now,
                delays_seconds=self.settings.retry_delays_seconds,
                topics=self.settings.topics.retry,
                jitter=random.random(),  # noqa: S311 - it spreads load and protects nothing
            )
            if isinstance(retry, Retry):
                return Ending(outcome="retry", retry=retry)
            found = retry
        if not isinstance(found, Failure):
            return ending_of(task, found, identity=self.identity, now=now)
        stored = None
        if ask_store and task.request_id is not None and task.tenant != NO_TENANT:
            # The manifest decides: this failure's, unless another worker has written one.
            stored = await self.store.claim_and_conclude(task, result_of(task, found, identity=self.identity, now=now))
        return ending_of(task, stored, failure=found, identity=self.identity, now=now)

    async def _write_retry(self, task: TaskRecord, retry: Retry) -> Failure | None:
        """Send the task to its retry topic; returns why it fails instead, None when it is there."""
        outgoing = retry_record(
            task.record, task.envelope, topic=retry.topic, verdict=retry.failed.verdict, not_before=retry.not_before
        )
        try:
            await self._safely(partial(self.publisher.publish, outgoing, refusable=True))
        except RecordRefusedError as error:
            return failure_from(retry.failed, besides=f"and it could not be kept for another try: {error}")
        _after_retry()
        attempt = retry.failed.verdict.spent.attempt
        if isinstance(task.content, DecodedTask):
            self.progress.report(task.content, ProgressType.RETRYING, attempt=attempt)
        log.info("task_retried_later", request_id=task.request_id, topic=retry.topic, attempt=attempt)
        return None

    async def _write_dead_letter(self, task: TaskRecord, failure: Failure) -> None:
        """Publish the record and why it failed; where it does not fit, a pointer to its bytes in the object store."""
        log.warning(
            "task_dead_lettered",
            request_id=task.request_id,
            code=failure.code,
            disposition=failure.disposition,
            partition=task.record.partition,
            offset=task.record.offset,
        )
        render = partial(
            dead_letter_record,
            task.record,
            request_id=task.request_id,
            identity=self.identity,
            failed_at=self.clock.now(),
            topics=self.settings.topics,
        )
        whole = render(failure)
        if record_bytes(whole) <= MAX_DEAD_LETTER_BYTES and await self._is_taken(whole, refusable=True):
            return
        key = await self._safely(partial(self._keep_original, task.record))
        short = replace(failure, message=cut_text(failure.message, SHORT_TEXT_BYTES), stack=None)
        for pointer in (render(failure, object_key=key), replace(render(short, object_key=key), key=None, value=b"")):
            if await self._is_taken(pointer):
                return
        self.metrics.count_refused(self.settings.topics.dead_letters)

    async def _write_result(self, task: TaskRecord, result: GenerationResult) -> None:
        for shorter in shorter_results(result):
            completed_at = shorter.completed_at or self.clock.now()
            outgoing = result_record(
                shorter, task, completed_at=completed_at, source=self.identity.source, topics=self.settings.topics
            )
            if record_bytes(outgoing) <= MAX_MESSAGE_BYTES and await self._is_taken(outgoing):
                return
        self.metrics.count_refused(self.settings.topics.results)

    async def _is_taken(self, outgoing: OutgoingRecord, *, refusable: bool = False) -> bool:
        """Publish; returns whether the topic took the record."""
        try:
            await self._safely(partial(self.publisher.publish, outgoing, refusable=refusable))
        except RecordRefusedError as error:
            log.warning("record_refused", topic=outgoing.topic, error=str(error))
            return False
        return True

    async def _keep_original(self, record: ConsumerRecord) -> str:
        """Store the record's value and, beside it, its headers; returns the key of the value."""
        key = original_key(record)
        headers = [
            [name, None if value is None else base64.b64encode(value).decode()] for name, value in record.headers
        ]
        await self.store.put(f"{key}.headers.json", json.dumps(headers).encode(), content_type="application/json")
        await self.store.put(key, record.value or b"", content_type="application/octet-stream")
        return key

    async def _safely(self, write: Callable[[], Awaitable[T]]) -> T:
        """What `write` returns; after an unexpected error it is called again, up to the limit of holds.

        Other tasks go on meanwhile. To raise would end the agent, and each worker that gets the record after it.
        """
        hold: Hold | None = None
        backoff = Backoff(initial_seconds=RETRY_SECONDS, maximum_seconds=MAX_RETRY_SECONDS)
        while True:
            try:
                return await write()
            except (HoldExpiredError, RecordRefusedError):
                raise
            except Exception as error:  # whatever fails here must not lose an ending
                log.exception("ending_failed")
                hold = hold or self.holds.begin_apart(HoldCause.KAFKA)
                self.holds.check(hold, f"an ending could not be written: {error!r}")
            await backoff.sleep()


def original_key(record: ConsumerRecord) -> str:
    """Where the value of a record lies that is too large; with its timestamp, for a topic may be created again."""
    return f"_dead-letters/{record.topic}/{record.partition}/{record.offset}-{max(0, record.timestamp)}"
