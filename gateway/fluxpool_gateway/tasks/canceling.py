"""Cancel commands for the workers: which tasks get one, and its record on the control topic. Knows nothing of HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from fluxpool_contract import header_names
from fluxpool_contract.messages import CancelCommand
from fluxpool_contract.tenants import NO_TENANT
from fluxpool_gateway.store.task_state import TaskState, TaskStatus, epoch_of
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.producer import RecordSink

ANY_PARTITION: Final = -1
"""librdkafka takes the one of the key's hash, so that a task's commands stay in their order."""


class CancelOutcome(StrEnum):
    """What becomes of a wish to cancel a task."""

    REQUESTED = "requested"
    """Workers are told; the task ends as canceled unless its images are ready before."""
    ENDED = "ended"
    """It had ended already."""
    RUNNING = "running"
    """A worker has begun it, and only waiting tasks were to be canceled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWish:
    """Who wants tasks canceled, and how."""

    requested_by: str | None = None
    reason: str | None = None
    waiting_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceling:
    """Cancels tasks."""

    producer: RecordSink
    topic: str
    """The control topic."""

    async def cancel(
        self, tasks: Iterable[tuple[str, TaskState | RecentTask]], wish: CancelWish
    ) -> list[CancelOutcome]:
        """The outcome for each task, by its id and state, once every command that it takes is acknowledged.

        Raises `DeliveryError`, or the first of several: other tasks may be canceled then. To repeat it is harmless.
        """
        now = datetime.fromtimestamp(time.time(), UTC)
        outcomes: list[CancelOutcome] = []
        commands: list[Awaitable[int]] = []
        try:
            for request_id, found in tasks:
                outcome = _outcome_of(found, wish)
                outcomes.append(outcome)
                if outcome is CancelOutcome.REQUESTED:
                    commands.append(self._send(request_id, found, wish, now=now))
        finally:
            # Also when the queue is full: the records before that are under way.
            acknowledged = await asyncio.gather(*commands, return_exceptions=True)
        for answer in acknowledged:
            if isinstance(answer, BaseException):
                raise answer
        return outcomes

    def _send(
        self, request_id: str, found: TaskState | RecentTask, wish: CancelWish, *, now: datetime
    ) -> Awaitable[int]:
        command = CancelCommand(
            request_id=request_id,
            requested_by=wish.requested_by,
            reason=wish.reason,
            waiting_only=wish.waiting_only,
            at=now,
        )
        headers = [(header_names.CONTENT_TYPE, b"application/json")]
        if found.key.tenant != NO_TENANT:
            headers.append((header_names.TENANT, found.key.tenant.encode()))
        # A replay is another task with the same id, and the command is for the latest one.
        epoch = epoch_of(found.version) if isinstance(found, TaskState) else 0
        headers.append((header_names.EPOCH, b"%d" % epoch))
        value = command.model_dump_json(exclude_none=True).encode()
        return self.producer.send(
            topic=self.topic, partition=ANY_PARTITION, key=request_id.encode(), value=value, headers=headers
        )


def _outcome_of(found: TaskState | RecentTask, wish: CancelWish) -> CancelOutcome:
    if isinstance(found, RecentTask):
        return CancelOutcome.REQUESTED
    if found.status.terminal:
        return CancelOutcome.ENDED
    if wish.waiting_only and found.status is TaskStatus.RUNNING:
        return CancelOutcome.RUNNING
    return CancelOutcome.REQUESTED
