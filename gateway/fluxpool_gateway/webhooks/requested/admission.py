"""Webhooks that requests name, on their way in: refuses what would never be sent, and has their endpoints made.

Before the record of the task is written, so that whatever is accepted is told. The end is posted by the dispatcher.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog

from fluxpool_contract.messages import TaskWebhook
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, unavailable
from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.webhooks.database import WebhooksUnavailableError
from fluxpool_gateway.webhooks.dispatch.target_url import refusal_of_url
from fluxpool_gateway.webhooks.endpoints import TooManyEndpointsError
from fluxpool_gateway.webhooks.requested.endpoints import MAX_HOSTS, host_of
from fluxpool_gateway.webhooks.store import WebhookStore

_FIELD: Final = ("webhook", "url")
_KNOWN_MS: Final = 3600 * 1000
"""A host is noted as used at most so often: far less than the time after which an unused one is forgotten."""
_MAX_KNOWN: Final = 10_000

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedWebhooks:
    """Those of one process."""

    store: WebhookStore
    targets: WebhookSettings
    now_ms: Callable[[], int]
    _known_until_ms: dict[tuple[str, str], int] = field(default_factory=dict)
    """Hosts of tenants that have an endpoint."""

    def check(self, webhook: TaskWebhook) -> None:
        """Raises `ProblemError` (422) for a URL that is never sent to."""
        reason = refusal_of_url(webhook.url, self.targets)
        if reason is not None:
            problem = FieldProblem(".".join(_FIELD), reason, path=_FIELD)
            raise ProblemError(
                ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
            )

    async def prepare(self, webhook: TaskWebhook, *, tenant: str) -> None:
        """Return when the end of a task of the tenant will be found; raises `ProblemError` (409 or 503)."""
        now_ms = self.now_ms()
        host = (tenant, host_of(webhook.url))
        if self._known_until_ms.get(host, 0) > now_ms:
            return
        try:
            await self.store.use_requested(tenant, webhook.url, now_ms=now_ms)
        except TooManyEndpointsError:
            detail = f"requests of the tenant name {MAX_HOSTS} hosts as webhooks; use one of these, or an endpoint"
            problem = FieldProblem(".".join(_FIELD), detail, path=_FIELD)
            raise ProblemError(ProblemCode.TOO_MANY_WEBHOOKS, detail, fields=[problem]) from None
        except WebhooksUnavailableError as error:
            logger.warning("webhooks_unusable", reason=str(error))
            detail = "the webhook cannot be noted at the moment; nothing was accepted, try again"
            raise unavailable(ProblemCode.WEBHOOKS_UNAVAILABLE, detail) from error
        if len(self._known_until_ms) >= _MAX_KNOWN:
            self._known_until_ms.clear()
        self._known_until_ms[host] = now_ms + _KNOWN_MS
