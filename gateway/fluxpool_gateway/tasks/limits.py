"""What a submission asks before its record is written: whether the tenant, the queue and the webhooks allow it."""

from collections.abc import Sequence
from typing import Protocol

from fluxpool_contract.messages import TaskWebhook
from fluxpool_gateway.http.generation_request import GenerationRequest


class TaskQuotas(Protocol):
    """What tenants may submit; `Quotas` in service."""

    async def admit(self, tenant: str, request_ids: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Headers of the response; raises `ProblemError` (429)."""

    def release(self, tenant: str, request_ids: Sequence[str]) -> None:
        """Admitted tasks were not written."""


class TaskWebhooks(Protocol):
    """Where requests want the ends of their tasks to be posted; `RequestedWebhooks` in service."""

    def check(self, webhook: TaskWebhook) -> None:
        """Raises `ProblemError` (422) for a URL that is never sent to."""

    async def prepare(self, webhook: TaskWebhook, *, tenant: str) -> None:
        """Return when the end will be found; raises `ProblemError` (409, 503)."""


class TaskAdmission(Protocol):
    """Which waits requests accept; `Admission` in service."""

    def admit(self, request: GenerationRequest, topic: str) -> Sequence[tuple[str, str]]:
        """Headers of the response; raises `ProblemError` (429)."""
