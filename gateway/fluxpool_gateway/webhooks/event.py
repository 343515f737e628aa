"""What happened to a task or a group, as a message of Standard Webhooks. Pure.

An event has the same id in every process that finds it, and each time: the tasks of a store that is built again from
Kafka, or a result that is delivered again, make no second one.
"""

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import TaskEvent, TaskWebhook
from fluxpool_gateway.store.task_list import GroupCounts
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskState, TaskStatus, epoch_of
from fluxpool_gateway.tasks.view import TaskView

MAX_BODY_BYTES: Final = 20_000
"""What Standard Webhooks recommends; receivers read a body whole before they know the sender."""
_DROPPED: Final = ("metadata", "warnings", "timings", "images", "error")
"""Fields that a message does without when it would be too large, in this order; the task's URL has them."""


class EventType(StrEnum):
    """What an endpoint can be told."""

    SUCCEEDED = TaskEvent.SUCCEEDED
    FAILED = TaskEvent.FAILED
    CANCELED = TaskEvent.CANCELED
    EXPIRED = TaskEvent.EXPIRED
    GROUP_COMPLETED = "group.completed"


TEST_TYPE: Final = "webhook.test"
"""Sent when the owner of an endpoint asks for it, whatever its event types are."""
_TYPES: Final = {
    TaskStatus.SUCCEEDED: EventType.SUCCEEDED,
    TaskStatus.FAILED: EventType.FAILED,
    TaskStatus.CANCELED: EventType.CANCELED,
    TaskStatus.EXPIRED: EventType.EXPIRED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One message, the same for every endpoint that gets it."""

    event_id: str
    """The `webhook-id` of each of its deliveries."""
    tenant: str
    type: str
    at_ms: int
    """When it happened."""
    body: str
    """JSON, below `MAX_BODY_BYTES`."""
    webhook: TaskWebhook | None = None
    """Where the request of the task wants it, beside the endpoints of the tenant."""


def task_ended(task: TaskState, *, base: str) -> Event | None:
    """That a task has ended; None of a task that has not, or is deleted.

    `base` is the address of the gateway for clients, ending in a slash.
    """
    type_ = _TYPES.get(task.status)
    if type_ is None or task.completed_at_ms is None:
        return None
    view = TaskView.of_state(task, status_url=f"{base}v1/generations/{task.request_id}")
    task_fields = view.model_dump(mode="json", exclude={"progress", "queue", "parent_id"})
    event_id = _id(task.tenant, task.request_id, str(epoch_of(task.version)), type_)
    event = _event(event_id, task.tenant, type_, at_ms=task.completed_at_ms, fields=task_fields)
    return replace(event, webhook=_webhook_of(task, type_))


def group_completed(tenant: str, group_id: str, counted: GroupCounts, *, at_ms: int, base: str) -> Event:
    """That all tasks that a group has so far have ended. There is one for a group, ever."""
    fields = {
        "group_id": group_id,
        "total": counted.total,
        "counts": {status.value: counted.counts.get(status, 0) for status in SHOWN_STATUSES if status.terminal},
        "first_created_at": moment_at(counted.first_at_ms).isoformat(),
        "last_created_at": moment_at(counted.last_at_ms).isoformat(),
        "group_url": f"{base}v1/groups/{group_id}",
        "tasks_url": f"{base}v1/generations?group_id={group_id}",
    }
    event_id = _id(tenant, group_id, EventType.GROUP_COMPLETED)
    return _event(event_id, tenant, EventType.GROUP_COMPLETED, at_ms=at_ms, fields=fields)


def test_event(tenant: str, endpoint_id: str, *, at_ms: int) -> Event:
    """That somebody tries an endpoint."""
    fields = {"endpoint_id": endpoint_id}
    return _event(f"evt_{secrets.token_hex(16)}", tenant, TEST_TYPE, at_ms=at_ms, fields=fields)


def _webhook_of(task: TaskState, type_: EventType) -> TaskWebhook | None:
    # Most tasks have none, and a body is up to 64 KiB.
    if task.body is None or '"webhook"' not in task.body:
        return None
    try:
        # As JSON again: its tuples are lists there.
        webhook = TaskWebhook.model_validate_json(json.dumps(json.loads(task.body).get("webhook")))
    except ValidationError:
        return None
    return webhook if not webhook.events or type_.value in webhook.events else None


def _event(event_id: str, tenant: str, type_: str, *, at_ms: int, fields: dict[str, Any]) -> Event:
    message = {"type": type_, "timestamp": moment_at(at_ms).isoformat(), "data": fields}
    body = _json(message)
    for name in _DROPPED:
        if len(body.encode()) < MAX_BODY_BYTES:
            break
        fields.pop(name, None)
        fields["shortened"] = True
        body = _json(message)
    return Event(event_id=event_id, tenant=tenant, type=type_, at_ms=at_ms, body=body)


def _id(*parts: str) -> str:
    # Parts have no line ends, so that no two lists of them are one text.
    return f"evt_{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:32]}"


def _json(message: dict[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
