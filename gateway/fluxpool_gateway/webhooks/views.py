"""Endpoints and deliveries as clients see them, and what they send to change these."""

from datetime import datetime
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import WebhookUrl
from fluxpool_gateway.http.routes import RequestModel
from fluxpool_gateway.webhooks.deliveries import DeliveryState
from fluxpool_gateway.webhooks.delivery_log import Delivery
from fluxpool_gateway.webhooks.dispatch.sending import Attempt, AttemptError
from fluxpool_gateway.webhooks.endpoints import Endpoint, EndpointKind
from fluxpool_gateway.webhooks.event import EventType

DAY_SECONDS: Final = 24 * 3600
MAX_OVERLAP_SECONDS: Final = 30 * DAY_SECONDS
_NAME_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,63}$"
"""What any terminal and log shows as it is."""


EndpointName = Annotated[str, Field(pattern=_NAME_PATTERN)]
EventTypes = Annotated[frozenset[EventType], Field(max_length=len(EventType))]


class EndpointRequest(RequestModel):
    """An endpoint to create."""

    name: EndpointName
    """For people: who is told."""
    url: WebhookUrl
    """Where messages are posted to: `https://`, without a user, password or fragment. Its host must have a public
    address, unless the gateway's settings allow its network."""
    event_types: EventTypes = frozenset()
    """What it is told of. Absent or empty: everything."""
    enabled: Annotated[bool, Field(strict=True)] = True


class EndpointPatch(RequestModel):
    """What to change; what is absent stays."""

    name: EndpointName | None = None
    url: WebhookUrl | None = None
    event_types: EventTypes | None = None
    enabled: Annotated[bool, Field(strict=True)] | None = None
    """False: it is told nothing, and what waits for it is given up."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class SecretRotation(RequestModel):
    """How to replace the secret."""

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=MAX_OVERLAP_SECONDS)] = DAY_SECONDS
    """For so long messages are signed with the former secret as well."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class EndpointView(_View):
    """An endpoint, without its secrets."""

    id: str
    kind: EndpointKind
    """registered, or requests: the webhooks of requests with URLs of one host, which is its `url`."""
    name: str
    url: str
    event_types: tuple[str, ...]
    """Empty: everything; with `requests` what each request names."""
    enabled: bool
    disabled_because: str | None
    """Why it was disabled, where its owner did not."""
    created_at: datetime
    failures: int
    """Attempts that failed since the last one that succeeded."""
    secrets: int
    """How many sign its messages; more than one while one is rotated."""

    @classmethod
    def of(cls, endpoint: Endpoint, *, now_ms: int, **more: object) -> Self:
        """The view of one."""
        return cls.model_validate(
            {
                "id": endpoint.endpoint_id,
                "kind": endpoint.kind,
                "name": endpoint.name,
                "url": endpoint.url,
                "event_types": endpoint.event_types,
                "enabled": endpoint.enabled,
                "disabled_because": endpoint.disabled_because,
                "created_at": moment_at(endpoint.created_at_ms),
                "failures": endpoint.failures,
                "secrets": len(endpoint.valid_secrets(now_ms)),
                **more,
            }
        )


class NewEndpointView(EndpointView):
    """An endpoint with the secret that was just made."""

    secret: str
    """`whsec_` and what verifiers of Standard Webhooks take. Shown in this response alone."""


class RequestSecretView(_View):
    """The secret that was just made for the webhooks of the tenant's requests."""

    secret: str
    """`whsec_` and what verifiers of Standard Webhooks take. Shown in this response alone."""
    secrets: int
    """How many sign these messages; more than one while one is rotated."""


class EndpointList(_View):
    """The endpoints of a tenant, the oldest first."""

    data: tuple[EndpointView, ...]


class AttemptView(_View):
    """One attempt of a delivery."""

    at: datetime
    latency_ms: int
    status: int | None
    """Of the response; null without one."""
    error: AttemptError | None
    """Null: it succeeded."""
    reason: str | None
    """The error in words."""
    response: str
    """The first 2 KB of the response's body."""

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """The view of one."""
        return cls(
            at=moment_at(attempt.at_ms),
            latency_ms=attempt.latency_ms,
            status=attempt.status,
            error=attempt.error,
            reason=attempt.reason,
            response=attempt.answer,
        )


class DeliveryView(_View):
    """A message to one endpoint."""

    id: str
    endpoint_id: str
    webhook_id: str
    """The `webhook-id` header: the same in all attempts, and for all endpoints."""
    type: str
    url: str | None
    """Where the request of the task wants it; null: the endpoint's."""
    state: DeliveryState
    attempts: int
    """Made so far."""
    error: AttemptError | None
    """Of the last attempt."""
    created_at: datetime
    next_attempt_at: datetime | None
    """While it is pending, unless others wait before it."""
    ended_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery, **more: object) -> Self:
        """The view of one."""
        is_pending = delivery.state == DeliveryState.PENDING
        return cls.model_validate(
            {
                "id": delivery.delivery_id,
                "endpoint_id": delivery.endpoint_id,
                "webhook_id": delivery.event_id,
                "type": delivery.type,
                "url": delivery.url,
                "state": delivery.state,
                "attempts": delivery.attempts,
                "error": delivery.last_error,
                "created_at": moment_at(delivery.created_at_ms),
                "next_attempt_at": moment_at(delivery.due_at_ms) if is_pending else None,
                "ended_at": None if delivery.ended_at_ms is None else moment_at(delivery.ended_at_ms),
                **more,
            }
        )


class DeliveryLogView(DeliveryView):
    """A message with its body and its attempts."""

    body: str
    """As it is posted; JSON."""
    log: tuple[AttemptView, ...]
    """The last 100 attempts, in order."""


class DeliveryPageView(_View):
    """Some deliveries to an endpoint, the newest first."""

    data: tuple[DeliveryView, ...]
    has_more: bool
    next_cursor: str | None
    """`cursor` of the next page; null on the last one."""
