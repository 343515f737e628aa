"""What a submission asks before its record is written: whether the limits, the queue and the webhooks allow it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from fluxpool_contract.messages import TaskWebhook
from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.identity.caller import KeyLimit


class TaskQuotas(Protocol):
    """What tenants and keys may submit; `Quotas` in service."""

    async def admit(
        self, tenant: str, request_ids: Sequence[str], *, limit: KeyLimit | None = None
    ) -> Sequence[tuple[str, str]]:
        """Headers of the response; raises `ProblemError` (429)."""

    def release(self, tenant: str, request_ids: Sequence[str]) -> None:
        """Admitted tasks were not written."""

    async def close(self) -> None:
        """Finish what is under way."""


class QuotasOnDemand:
    """Opens the counts with the first key that has a limit, where no tenant has one.

    Not at the start of every gateway: the library of the counts takes a tenth of it.
    """

    def __init__(self, open_quotas: Callable[[], TaskQuotas]) -> None:
        self._open = open_quotas
        self._opened: TaskQuotas | None = None

    async def admit(
        self, tenant: str, request_ids: Sequence[str], *, limit: KeyLimit | None = None
    ) -> Sequence[tuple[str, str]]:
        """Headers of the response; raises `ProblemError` (429)."""
        if limit is None:
            return ()
        if self._opened is None:
            self._opened = self._open()
        return await self._opened.admit(tenant, request_ids, limit=limit)

    def release(self, tenant: str, request_ids: Sequence[str]) -> None:
        """Admitted tasks were not written."""
        if self._opened is not None:
            self._opened.release(tenant, request_ids)

    async def close(self) -> None:
        """Finish what is under way."""
        if self._opened is not None:
            await self._opened.close()


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
