"""Admits tasks within the limits of their tenant and key, or refuses with 429; says in headers what is left.

The limits hold across the server processes of a gateway (`store.quota_file`), and on PostgreSQL across its replicas.
Response headers follow the IETF draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers).
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, assert_never

import structlog
from limits import RateLimitItem, parse

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.identity.caller import KeyLimit
from fluxpool_gateway.settings import EVERY_TENANT, TenantLimits
from fluxpool_gateway.store.batches import Batches
from fluxpool_gateway.store.quota_file import (
    Admit,
    Grant,
    LimitName,
    Limits,
    Rate,
    Release,
    Transaction,
    UnfinishedTasks,
)
from fluxpool_gateway.store.shared_file import Shared, SharedFileError

Headers = Sequence[tuple[str, str]]

MAX_RETRY_AFTER_SECONDS: Final = 120
OUTSTANDING_RETRY_SECONDS: Final = 5
"""When tasks end is not known here; about the time of one image."""

logger = structlog.stdlib.get_logger(__name__)


class Quotas:
    """The limits of all tenants and keys, for one event loop; close it at the end."""

    def __init__(self, limits: Mapping[str, TenantLimits], file: Shared, store: UnfinishedTasks) -> None:
        """`limits` are by tenant; those of `EVERY_TENANT` are for each tenant without its own."""
        self._limits = limits
        self._file = file
        self._store = store
        self._batches: Batches[Admit | Release, Grant] = Batches(self._apply, name="quotas", error=SharedFileError)

    async def admit(self, tenant: str, request_ids: Sequence[str], *, limit: KeyLimit | None = None) -> Headers:
        """Admit tasks before their records are written, all or none; returns headers of the response.

        `limit` is that of the key, which holds beside those of the tenant.

        Raises `ProblemError` (429). Tasks that were not written after all are to be released.
        """
        limits = _limits(tenant, self._of(tenant), limit)
        if not limits.rates and limits.outstanding is None:
            return ()
        try:
            wanted = Admit(tenant=tenant, request_ids=tuple(request_ids), limits=limits)
            # A client that disconnects must not cancel the batch of others.
            grant = await asyncio.shield(self._batches.add(wanted))
        except SharedFileError as error:
            # The limits protect the queue; without their file it is still better to accept than to refuse everything.
            logger.warning("limits_not_enforced", tenant=tenant, reason=str(error))
            return ()
        headers = _headers(grant, limits)
        if grant.exceeded is not None:
            raise _refusal(tenant, grant, limits, wanted=len(request_ids), headers=headers)
        return headers

    def release(self, tenant: str, request_ids: Sequence[str]) -> None:
        """Say that admitted tasks certainly were not written. Not waited for: what is lost is dropped later."""
        limits = self._of(tenant)
        if limits is not None and limits.outstanding is not None:
            self._batches.add(Release(tenant=tenant, request_ids=tuple(request_ids)))

    async def close(self) -> None:
        """Finish what is under way."""
        await self._batches.close(self._file.close)

    def _of(self, tenant: str) -> TenantLimits | None:
        return self._limits.get(tenant) or self._limits.get(EVERY_TENANT)

    def _apply(self, requests: Sequence[Admit | Release]) -> Sequence[Grant]:
        (grants,) = self._file.apply([Transaction(requests, self._store)], now_ms=time.time_ns() // 1_000_000)
        return grants


def _limits(tenant: str, given: TenantLimits | None, limit: KeyLimit | None) -> Limits:
    rates = []
    if given is not None and given.submit is not None:
        rates.append(Rate(name=LimitName.SUBMIT, item=_parsed(given.submit), counted_for=(tenant,)))
    if limit is not None:
        rates.append(Rate(name=LimitName.KEY_SUBMIT, item=_parsed(limit.submit), counted_for=("key", limit.bucket)))
    return Limits(rates=tuple(rates), outstanding=None if given is None else given.outstanding)


@lru_cache(maxsize=1000)
def _parsed(text: str) -> RateLimitItem:
    return parse(text)


def _headers(grant: Grant, limits: Limits) -> list[tuple[str, str]]:
    policies = [f'"{rate.name}";q={rate.item.amount};w={rate.item.get_expiry()}' for rate in limits.rates]
    if limits.outstanding is not None:
        policies.append(f'"{LimitName.OUTSTANDING}";q={limits.outstanding};qu="tasks"')
    left = [
        f'"{remaining.limit}";r={remaining.count}'
        + ("" if remaining.more_in_seconds is None else f";t={remaining.more_in_seconds}")
        for remaining in grant.remaining
    ]
    return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(left))]


def _refusal(
    tenant: str, grant: Grant, limits: Limits, *, wanted: int, headers: Sequence[tuple[str, str]]
) -> ProblemError:
    assert grant.exceeded is not None  # noqa: S101 - called for a refusal
    match grant.exceeded:
        case LimitName.SUBMIT | LimitName.KEY_SUBMIT:
            item = next(rate.item for rate in limits.rates if rate.name is grant.exceeded)
            code, allowed = ProblemCode.RATE_LIMIT_EXCEEDED, item.amount
            left = next(remaining for remaining in grant.remaining if remaining.limit is grant.exceeded)
            wait_seconds = min(left.more_in_seconds or 1, MAX_RETRY_AFTER_SECONDS)
            who = f"tenant {tenant}" if grant.exceeded is LimitName.SUBMIT else "this API key"
            reason = f"{who} may submit {item}; wait {wait_seconds} s"
        case LimitName.OUTSTANDING:
            assert limits.outstanding is not None  # noqa: S101 - it was exceeded
            code, allowed, wait_seconds = (
                ProblemCode.OUTSTANDING_LIMIT_EXCEEDED,
                limits.outstanding,
                OUTSTANDING_RETRY_SECONDS,
            )
            reason = f"tenant {tenant} may have {allowed} unfinished tasks; wait until some are finished"
        case unknown:
            assert_never(unknown)
    if wanted > allowed:
        # No wait helps.
        return ProblemError(code, f"{reason.partition(';')[0]}, not {wanted} at once; send fewer", headers=headers)
    detail = f"{reason}, or ask the operator of the gateway for a higher limit `{grant.exceeded}`"
    return ProblemError(code, detail, headers=[("retry-after", str(wait_seconds)), *headers])
