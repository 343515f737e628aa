"""Endpoints of webhooks and their deliveries: the calls of `Client.webhooks` and `AsyncClient.webhooks`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypedDict, TypeVar, Unpack
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from fluxpool_client.steps import Calls, Run, RunAsync, Steps

_PATH: Final = "/v1/webhooks"
_ID: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
DAY_SECONDS: Final = 86_400

T = TypeVar("T")


class _Response(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class WebhookEndpoint(_Response):
    """An address that is told when tasks and groups end."""

    id: str
    kind: str = "registered"
    """registered, or requests: the webhooks of requests with URLs of one host."""
    name: str
    url: str
    event_types: tuple[str, ...]
    """Empty: everything."""
    enabled: bool
    disabled_because: str | None = None
    created_at: datetime
    failures: int = 0
    """Attempts that failed since the last one that succeeded."""
    secrets: int = 1
    """How many sign its messages."""


class NewWebhookEndpoint(WebhookEndpoint):
    """One with the secret that was just made, which nothing shows again."""

    secret: str = Field(repr=False)


class RequestSecret(_Response):
    """The secret that was just made for the webhooks of the tenant's requests; nothing shows it again."""

    secret: str = Field(repr=False)
    secrets: int = 1
    """How many sign these messages."""


class WebhookAttempt(_Response):
    """One attempt of a delivery."""

    at: datetime
    latency_ms: int
    status: int | None
    error: str | None
    """None: it succeeded."""
    reason: str | None = None
    response: str = ""
    """The first 2 KB of the response's body."""


class WebhookDelivery(_Response):
    """A message to one endpoint."""

    id: str
    endpoint_id: str
    webhook_id: str
    type: str
    url: str | None = None
    """Where the request of the task wants it; None: the endpoint's."""
    state: str
    """pending, succeeded or failed."""
    attempts: int
    error: str | None = None
    created_at: datetime
    next_attempt_at: datetime | None = None
    ended_at: datetime | None = None
    body: str | None = None
    """The message; of `delivery` alone."""
    log: tuple[WebhookAttempt, ...] = ()
    """The attempts in order; of `delivery` alone."""


class WebhookDeliveryPage(_Response):
    """Some deliveries to an endpoint, the newest first."""

    data: tuple[WebhookDelivery, ...]
    has_more: bool
    next_cursor: str | None


class WebhookFields(TypedDict, total=False):
    """What an endpoint has beside its name and URL."""

    event_types: Sequence[str]
    """Without any, everything."""
    enabled: bool


class WebhookChanges(WebhookFields, total=False):
    """What to change of an endpoint."""

    name: str
    url: str


class _Endpoints(_Response):
    data: tuple[WebhookEndpoint, ...]


@dataclass(frozen=True, slots=True)
class _Requests:
    """What the calls send."""

    operations: Calls

    def create(self, name: str, url: str, fields: WebhookFields) -> Steps[NewWebhookEndpoint]:
        body = {"name": name, "url": url, **fields}
        return self.operations.call(NewWebhookEndpoint, "POST", _PATH, body, repeatable=False)

    def list(self) -> Steps[tuple[WebhookEndpoint, ...]]:
        found = yield from self.operations.call(_Endpoints, "GET", _PATH, repeatable=True)
        return found.data

    def get(self, endpoint_id: str) -> Steps[WebhookEndpoint]:
        return self.operations.call(WebhookEndpoint, "GET", _endpoint(endpoint_id), repeatable=True)

    def change(self, endpoint_id: str, changes: WebhookChanges) -> Steps[WebhookEndpoint]:
        return self.operations.call(WebhookEndpoint, "PATCH", _endpoint(endpoint_id), {**changes}, repeatable=True)

    def delete(self, endpoint_id: str) -> Steps[None]:
        return self.operations.remove(_endpoint(endpoint_id))

    def rotate_secret(self, endpoint_id: str, *, overlap_seconds: int) -> Steps[NewWebhookEndpoint]:
        path, body = f"{_endpoint(endpoint_id)}/rotate-secret", {"overlap_seconds": overlap_seconds}
        return self.operations.call(NewWebhookEndpoint, "POST", path, body, repeatable=False)

    def rotate_request_secret(self, *, overlap_seconds: int) -> Steps[RequestSecret]:
        path, body = f"{_PATH}/requests/rotate-secret", {"overlap_seconds": overlap_seconds}
        return self.operations.call(RequestSecret, "POST", path, body, repeatable=False)

    def test(self, endpoint_id: str) -> Steps[WebhookDelivery]:
        path = f"{_endpoint(endpoint_id)}/test"
        return self.operations.call(WebhookDelivery, "POST", path, repeatable=False)

    def deliveries(self, endpoint_id: str, *, cursor: str | None, limit: int) -> Steps[WebhookDeliveryPage]:
        query = urlencode({"limit": limit} | ({} if cursor is None else {"cursor": cursor}))
        path = f"{_endpoint(endpoint_id)}/deliveries?{query}"
        return self.operations.call(WebhookDeliveryPage, "GET", path, repeatable=True)

    def delivery(self, delivery_id: str) -> Steps[WebhookDelivery]:
        return self.operations.call(WebhookDelivery, "GET", _delivery(delivery_id), repeatable=True)

    def redeliver(self, delivery_id: str) -> Steps[WebhookDelivery]:
        path = f"{_delivery(delivery_id)}/redeliver"
        return self.operations.call(WebhookDelivery, "POST", path, repeatable=False)


class Webhooks:
    """The calls of a blocking client. Those that make something new are sent once."""

    def __init__(self, operations: Calls, run: Run) -> None:
        self._requests = _Requests(operations)
        self._run = run

    def create(self, name: str, url: str, **fields: Unpack[WebhookFields]) -> NewWebhookEndpoint:
        """Create an endpoint; its secret is in the answer alone."""
        return self._run(self._requests.create(name, url, fields))

    def list(self) -> tuple[WebhookEndpoint, ...]:
        """The endpoints of the tenant, the oldest first."""
        return self._run(self._requests.list())

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        """One endpoint."""
        return self._run(self._requests.get(endpoint_id))

    def change(self, endpoint_id: str, **changes: Unpack[WebhookChanges]) -> WebhookEndpoint:
        """Change an endpoint; what is not given stays."""
        return self._run(self._requests.change(endpoint_id, changes))

    def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries."""
        self._run(self._requests.delete(endpoint_id))

    def rotate_secret(self, endpoint_id: str, *, overlap_seconds: int = DAY_SECONDS) -> NewWebhookEndpoint:
        """Make another secret; messages are signed with the former one as well for so long."""
        return self._run(self._requests.rotate_secret(endpoint_id, overlap_seconds=overlap_seconds))

    def rotate_request_secret(self, *, overlap_seconds: int = DAY_SECONDS) -> RequestSecret:
        """Make a secret, or another one, for webhooks that requests name; as `rotate_secret`."""
        return self._run(self._requests.rotate_request_secret(overlap_seconds=overlap_seconds))

    def test(self, endpoint_id: str) -> WebhookDelivery:
        """Send a test; `delivery` tells what came of it."""
        return self._run(self._requests.test(endpoint_id))

    def deliveries(self, endpoint_id: str, *, cursor: str | None = None, limit: int = 50) -> WebhookDeliveryPage:
        """Deliveries to an endpoint, the newest first."""
        return self._run(self._requests.deliveries(endpoint_id, cursor=cursor, limit=limit))

    def delivery(self, delivery_id: str) -> WebhookDelivery:
        """One delivery with its message and attempts."""
        return self._run(self._requests.delivery(delivery_id))

    def redeliver(self, delivery_id: str) -> WebhookDelivery:
        """Deliver a message again."""
        return self._run(self._requests.redeliver(delivery_id))


class AsyncWebhooks:
    """The calls of an asyncio client. Those that make something new are sent once."""

    def __init__(self, operations: Calls, run: RunAsync) -> None:
        self._requests = _Requests(operations)
        self._run = run

    async def create(self, name: str, url: str, **fields: Unpack[WebhookFields]) -> NewWebhookEndpoint:
        """Create an endpoint; its secret is in the answer alone."""
        return await self._run(self._requests.create(name, url, fields))

    async def list(self) -> tuple[WebhookEndpoint, ...]:
        """The endpoints of the tenant, the oldest first."""
        return await self._run(self._requests.list())

    async def get(self, endpoint_id: str) -> WebhookEndpoint:
        """One endpoint."""
        return await self._run(self._requests.get(endpoint_id))

    async def change(self, endpoint_id: str, **changes: Unpack[WebhookChanges]) -> WebhookEndpoint:
        """Change an endpoint; what is not given stays."""
        return await self._run(self._requests.change(endpoint_id, changes))

    async def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries."""
        await self._run(self._requests.delete(endpoint_id))

    async def rotate_secret(self, endpoint_id: str, *, overlap_seconds: int = DAY_SECONDS) -> NewWebhookEndpoint:
        """Make another secret; messages are signed with the former one as well for so long."""
        return await self._run(self._requests.rotate_secret(endpoint_id, overlap_seconds=overlap_seconds))

    async def rotate_request_secret(self, *, overlap_seconds: int = DAY_SECONDS) -> RequestSecret:
        """Make a secret, or another one, for webhooks that requests name; as `rotate_secret`."""
        return await self._run(self._requests.rotate_request_secret(overlap_seconds=overlap_seconds))

    async def test(self, endpoint_id: str) -> WebhookDelivery:
        """Send a test; `delivery` tells what came of it."""
        return await self._run(self._requests.test(endpoint_id))

    async def deliveries(self, endpoint_id: str, *, cursor: str | None = None, limit: int = 50) -> WebhookDeliveryPage:
        """Deliveries to an endpoint, the newest first."""
        return await self._run(self._requests.deliveries(endpoint_id, cursor=cursor, limit=limit))

    async def delivery(self, delivery_id: str) -> WebhookDelivery:
        """One delivery with its message and attempts."""
        return await self._run(self._requests.delivery(delivery_id))

    async def redeliver(self, delivery_id: str) -> WebhookDelivery:
        """Deliver a message again."""
        return await self._run(self._requests.redeliver(delivery_id))


def _endpoint(endpoint_id: str) -> str:
    return f"{_PATH}/{_checked(endpoint_id, 'endpoint_id')}"


def _delivery(delivery_id: str) -> str:
    return f"{_PATH}/deliveries/{_checked(delivery_id, 'delivery_id')}"


def _checked(text: str, name: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError(f"{name}: must be an id as the gateway shows it")
    return text
