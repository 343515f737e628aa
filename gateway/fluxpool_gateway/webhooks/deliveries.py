"""Deliveries of events to endpoints: the statements of the queue of each endpoint. The caller owns the transaction.

An endpoint has at most one delivery under way: who delivers holds a lease of the endpoint, and nothing but the oldest
pending delivery is attempted. An endpoint's `due_at_ms` is that of its oldest pending delivery, and null without one.
Every function that changes a queue has locked its endpoint first (`endpoints`).
"""

import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, Connection, and_, delete, insert, literal_column, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert_postgresql
from sqlalchemy.dialects.sqlite import insert as upsert_sqlite
from sqlalchemy.engine import RowMapping

from fluxpool_gateway.webhooks.dispatch.sending import Attempt, AttemptError
from fluxpool_gateway.webhooks.endpoints import Endpoint, EndpointKind, to_endpoint
from fluxpool_gateway.webhooks.event import TEST_TYPE, Event, test_event
from fluxpool_gateway.webhooks.requested.endpoints import UNUSED_MS, requested_endpoint_id
from fluxpool_gateway.webhooks.schedule import MAX_AGE_MS, next_attempt_ms
from fluxpool_gateway.webhooks.tables import (
    IS_PENDING,
    attempts,
    counts,
    cursors,
    deliveries,
    endpoints,
    events,
    groups,
)

LEASE_MS: Final = 30_000
"""Twice what an attempt takes. Replicas compare it with their own clocks, which may differ by the rest."""
RETENTION_MS: Final = 7 * 24 * 3600 * 1000
"""Of deliveries that have ended, and of events: longer than an event can be new, or it would be made twice."""
PURGED_AT_ONCE: Final = 1000
HTTP_GONE: Final = 410
_PENDING: Final[ColumnElement[bool]] = literal_column(IS_PENDING, Boolean)
_FIRST_MS: Final = 0
"""When a test is queued: before all others."""


class DeliveryState(StrEnum):
    """How far a delivery is."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Given up; it can be delivered again by hand."""


class Outcome(StrEnum):
    """What attempts are counted by."""

    SUCCEEDED = "succeeded"
    RETRIED = "retried"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A delivery that is to be attempted now, by the holder of the lease alone."""

    endpoint: Endpoint
    lease: str
    delivery_id: str
    event_id: str
    type: str
    url: str
    body: str
    attempts: int
    """Made so far."""
    tries: int
    """Of these, since it was queued."""
    queued_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What came of a claim."""

    claim: Claim
    attempt: Attempt
    now_ms: int
    draw: float
    """Random, from 0 to 1: spreads the next attempts of endpoints that failed together."""
    keeps_lease: bool
    """Whether the next delivery of the endpoint is claimed as well."""


def enqueue(connection: Connection, found: Sequence[Event], told: Sequence[Endpoint], *, now_ms: int) -> int:
    """Add events that are not known yet, with a delivery to each of these endpoints that wants them, in order.

    The endpoints are locked. Returns the number of deliveries.
    """
    ids = [event.event_id for event in found]
    known = set(connection.execute(select(events.c.event_id).where(events.c.event_id.in_(ids))).scalars())
    event_rows, rows = [], []
    for event in found:
        if event.event_id in known:
            continue
        known.add(event.event_id)
        wanting = [
            endpoint
            for endpoint in told
            if endpoint.tenant == event.tenant and endpoint.wants(event.type) and endpoint.told_from_ms <= event.at_ms
        ]
        made = [_delivery_row(event, endpoint.endpoint_id, now_ms=now_ms) for endpoint in wanting]
        if event.webhook is not None:
            requested_id = requested_endpoint_id(event.tenant, event.webhook.url)
            if any(endpoint.endpoint_id == requested_id for endpoint in told):
                made.append({**_delivery_row(event, requested_id, now_ms=now_ms), "url": event.webhook.url})
        if made:
            event_rows.append(_event_row(event, now_ms=now_ms))
            rows += made
    if rows:
        connection.execute(insert(events), event_rows)
        connection.execute(insert(deliveries), rows)
        _make_due(connection, {row["endpoint_id"] for row in rows}, now_ms=now_ms)
    return len(rows)


def enqueue_test(connection: Connection, endpoint: Endpoint, *, now_ms: int) -> str:
    """Add a test of a locked endpoint before all that waits; returns the id of the delivery."""
    event = test_event(endpoint.tenant, endpoint.endpoint_id, at_ms=now_ms)
    row = {**_delivery_row(event, endpoint.endpoint_id, now_ms=now_ms), "queued_at_ms": _FIRST_MS}
    connection.execute(insert(events), [_event_row(event, now_ms=now_ms)])
    connection.execute(insert(deliveries), [row])
    hasten(connection, endpoint.endpoint_id, now_ms=now_ms)
    return str(row["delivery_id"])


def redeliver(connection: Connection, delivery_id: str, endpoint: Endpoint, *, now_ms: int) -> None:
    """Queue a delivery again, behind what waits; one that is pending is attempted now. The endpoint is locked."""
    pending = {"state": DeliveryState.PENDING, "tries": 0, "queued_at_ms": now_ms, "due_at_ms": now_ms}
    connection.execute(
        update(deliveries)
        .where(deliveries.c.delivery_id == delivery_id, deliveries.c.state != DeliveryState.PENDING)
        .values(**pending, ended_at_ms=None)
    )
    hasten(connection, endpoint.endpoint_id, now_ms=now_ms)


def hasten(connection: Connection, endpoint_id: str, *, now_ms: int) -> None:
    """Attempt the first delivery of a locked endpoint now, however long it would wait."""
    first = _first_pending(connection, endpoint_id)
    if first is not None:
        connection.execute(
            update(deliveries).where(deliveries.c.delivery_id == first["delivery_id"]).values(due_at_ms=now_ms)
        )
    due_at_ms = None if first is None else now_ms
    connection.execute(update(endpoints).where(endpoints.c.endpoint_id == endpoint_id).values(due_at_ms=due_at_ms))


def give_up_pending(connection: Connection, endpoint_id: str, error: AttemptError, *, now_ms: int) -> None:
    """End what waits for a locked endpoint that is disabled."""
    given_up = _give_up(connection, endpoint_id, error, condition=_PENDING, now_ms=now_ms)
    connection.execute(update(endpoints).where(endpoints.c.endpoint_id == endpoint_id).values(due_at_ms=None))
    _save_counts(connection, Counter({Outcome.FAILED: given_up}))


def claim(connection: Connection, *, suspects: bool, limit: int, now_ms: int) -> list[Claim]:
    """Lease at most `limit` endpoints with a delivery that is due; `suspects` are those whose last attempt failed."""
    if limit <= 0:
        return []
    free = and_(endpoints.c.due_at_ms <= now_ms, endpoints.c.leased_until_ms <= now_ms, endpoints.c.enabled)
    failed = endpoints.c.failures > 0 if suspects else endpoints.c.failures == 0
    query = select(endpoints).where(free, failed).order_by(endpoints.c.due_at_ms).limit(limit)
    claims: list[Claim] = []
    for row in connection.execute(query.with_for_update(skip_locked=True)).mappings().all():
        lease = secrets.token_hex(8)
        claimed = _claim_first(connection, to_endpoint(row), lease)
        connection.execute(
            update(endpoints)
            .where(endpoints.c.endpoint_id == row["endpoint_id"])
            .values({"due_at_ms": None} if claimed is None else {"lease": lease, "leased_until_ms": now_ms + LEASE_MS})
        )
        if claimed is not None:
            claims.append(claimed)
    return claims


def settle(connection: Connection, settlements: Sequence[Settlement]) -> list[Claim | None]:
    """Save what came of attempts; returns the next claim of each endpoint under the same lease, where one is due.

    Nothing is saved of one whose lease was lost, or whose endpoint was deleted: who holds it now attempts it again.
    """
    counted: Counter[Outcome] = Counter()
    following = {
        settlement.claim.lease: _settle(connection, settlement, counted)
        for settlement in sorted(settlements, key=lambda settlement: settlement.claim.endpoint.endpoint_id)
    }
    _save_counts(connection, counted)
    return [following[settlement.claim.lease] for settlement in settlements]


def _settle(connection: Connection, settlement: Settlement, counted: Counter[Outcome]) -> Claim | None:
    made, attempt, now_ms = settlement.claim, settlement.attempt, settlement.now_ms
    leased = and_(endpoints.c.endpoint_id == made.endpoint.endpoint_id, endpoints.c.lease == made.lease)
    row = connection.execute(select(endpoints).where(leased).with_for_update()).mappings().first()
    if row is None:
        return None
    endpoint = to_endpoint(row)
    connection.execute(insert(attempts).values(delivery_id=made.delivery_id, number=made.attempts + 1, **attempt.row()))
    endpoint = replace(endpoint, failures=0 if attempt.succeeded else endpoint.failures + 1)
    is_gone = attempt.status == HTTP_GONE
    # A URL that a request named says nothing of the host's others.
    if is_gone and endpoint.enabled and endpoint.kind is EndpointKind.REGISTERED:
        endpoint = replace(endpoint, enabled=False, disabled_because="it answered 410 Gone")
    counted[_settle_delivery(connection, settlement, gives_up=is_gone or not endpoint.enabled)] += 1
    counted[Outcome.FAILED] += _give_up_behind(connection, settlement, endpoint)
    following = None
    first = _first_pending(connection, endpoint.endpoint_id)
    if first is not None and first["due_at_ms"] <= now_ms and settlement.keeps_lease and endpoint.enabled:
        following = _to_claim(connection, endpoint, made.lease, first)
    connection.execute(
        update(endpoints)
        .where(endpoints.c.endpoint_id == endpoint.endpoint_id)
        .values(
            enabled=endpoint.enabled,
            disabled_because=endpoint.disabled_because,
            failures=endpoint.failures,
            due_at_ms=None if first is None else first["due_at_ms"],
            lease=made.lease if following else None,
            leased_until_ms=now_ms + LEASE_MS if following else 0,
        )
    )
    return following


def release_all(connection: Connection) -> None:
    """End every lease. For a store with one dispatcher: those of the one before, which was killed."""
    connection.execute(update(endpoints).values(lease=None, leased_until_ms=0))


def purge(connection: Connection, *, now_ms: int) -> int:
    """Delete some of what is no longer kept; returns how many rows that were at most of one kind."""
    before_ms = now_ms - RETENTION_MS
    old = select(deliveries.c.number).where(deliveries.c.created_at_ms < before_ms)
    ended = old.where(or_(deliveries.c.state != DeliveryState.PENDING, deliveries.c.queued_at_ms < before_ms))
    statements = (
        delete(deliveries).where(deliveries.c.number.in_(ended.limit(PURGED_AT_ONCE))),
        delete(attempts).where(
            attempts.c.delivery_id.in_(
                select(attempts.c.delivery_id).where(attempts.c.at_ms < before_ms).limit(PURGED_AT_ONCE)
            ),
            attempts.c.at_ms < before_ms,
        ),
        delete(events).where(
            events.c.event_id.in_(
                select(events.c.event_id)
                .where(events.c.created_at_ms < before_ms)
                .where(~select(deliveries.c.number).where(deliveries.c.event_id == events.c.event_id).exists())
                .limit(PURGED_AT_ONCE)
            )
        ),
        delete(endpoints).where(
            endpoints.c.kind == EndpointKind.REQUESTS,
            endpoints.c.used_at_ms < now_ms - UNUSED_MS,
            endpoints.c.due_at_ms.is_(None),
            ~select(deliveries.c.number).where(deliveries.c.endpoint_id == endpoints.c.endpoint_id).exists(),
        ),
        delete(groups).where(groups.c.changed_at_ms < before_ms),
        delete(cursors).where(cursors.c.queued_at_ms < before_ms, cursors.c.tenant.not_in(select(endpoints.c.tenant))),
    )
    return max(connection.execute(statement).rowcount for statement in statements)


def _settle_delivery(connection: Connection, settlement: Settlement, *, gives_up: bool) -> Outcome:
    made, attempt, now_ms = settlement.claim, settlement.attempt, settlement.now_ms
    tries = made.tries + 1
    due_at_ms = None
    if not attempt.succeeded and not gives_up and made.type != TEST_TYPE:
        due_at_ms = next_attempt_ms(
            tries=tries,
            queued_at_ms=made.queued_at_ms,
            now_ms=now_ms,
            retry_after_ms=attempt.retry_after_ms,
            draw=settlement.draw,
        )
    values: dict[str, Any] = {"attempts": made.attempts + 1, "tries": tries, "last_error": attempt.error}
    if due_at_ms is not None:
        values["due_at_ms"] = due_at_ms
        outcome = Outcome.RETRIED
    else:
        outcome = Outcome.SUCCEEDED if attempt.succeeded else Outcome.FAILED
        values |= {
            "state": DeliveryState.SUCCEEDED if attempt.succeeded else DeliveryState.FAILED,
            "ended_at_ms": now_ms,
        }
    connection.execute(update(deliveries).where(deliveries.c.delivery_id == made.delivery_id).values(values))
    return outcome


def _give_up_behind(connection: Connection, settlement: Settlement, endpoint: Endpoint) -> int:
    """End what need not be attempted after this attempt; returns the number."""
    endpoint_id, now_ms = endpoint.endpoint_id, settlement.now_ms
    if not endpoint.enabled:
        return _give_up(connection, endpoint_id, AttemptError.DISABLED, condition=_PENDING, now_ms=now_ms)
    if settlement.attempt.succeeded:
        return 0
    # As old, and without an answer as long: otherwise each would be attempted once when its turn comes.
    too_old = deliveries.c.queued_at_ms.between(_FIRST_MS + 1, now_ms - MAX_AGE_MS)
    return _give_up(connection, endpoint_id, AttemptError.TOO_OLD, condition=too_old, now_ms=now_ms)


def _give_up(
    connection: Connection, endpoint_id: str, error: AttemptError, *, condition: ColumnElement[bool], now_ms: int
) -> int:
    return connection.execute(
        update(deliveries)
        .where(deliveries.c.endpoint_id == endpoint_id, _PENDING, condition)
        .values(state=DeliveryState.FAILED, ended_at_ms=now_ms, last_error=error)
    ).rowcount


def _first_pending(connection: Connection, endpoint_id: str) -> RowMapping | None:
    query = select(deliveries).where(deliveries.c.endpoint_id == endpoint_id, _PENDING)
    in_order = query.order_by(deliveries.c.queued_at_ms, deliveries.c.number)
    return connection.execute(in_order.limit(1)).mappings().first()


def _claim_first(connection: Connection, endpoint: Endpoint, lease: str) -> Claim | None:
    first = _first_pending(connection, endpoint.endpoint_id)
    return None if first is None else _to_claim(connection, endpoint, lease, first)


def _to_claim(connection: Connection, endpoint: Endpoint, lease: str, row: RowMapping) -> Claim:
    body = connection.execute(select(events.c.body).where(events.c.event_id == row["event_id"])).scalar_one()
    return Claim(
        endpoint=endpoint,
        lease=lease,
        delivery_id=row["delivery_id"],
        event_id=row["event_id"],
        type=row["type"],
        url=row["url"] or endpoint.url,
        body=body,
        attempts=row["attempts"],
        tries=row["tries"],
        queued_at_ms=row["queued_at_ms"],
    )


def _make_due(connection: Connection, endpoint_ids: Collection[str], *, now_ms: int) -> None:
    """Where nothing waited; where something does, it stays the first."""
    connection.execute(
        update(endpoints)
        .where(endpoints.c.endpoint_id.in_(endpoint_ids), endpoints.c.due_at_ms.is_(None))
        .values(due_at_ms=now_ms)
    )


def _event_row(event: Event, *, now_ms: int) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "tenant": event.tenant,
        "type": event.type,
        "body": event.body,
        "created_at_ms": now_ms,
    }


def _delivery_row(event: Event, endpoint_id: str, *, now_ms: int) -> dict[str, Any]:
    return {
        "delivery_id": f"dlv_{secrets.token_hex(12)}",
        "endpoint_id": endpoint_id,
        "event_id": event.event_id,
        "tenant": event.tenant,
        "type": event.type,
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "tries": 0,
        "created_at_ms": now_ms,
        "queued_at_ms": now_ms,
        "due_at_ms": now_ms,
        "url": None,
    }


def _save_counts(connection: Connection, counted: Counter[Outcome]) -> None:
    # The last rows that a transaction locks, in one order: others wait for them until it ends.
    make = upsert_postgresql if connection.dialect.name == "postgresql" else upsert_sqlite
    for outcome, number in sorted(counted.items()):
        if number:
            added = make(counts).values(outcome=outcome, number=number)
            connection.execute(
                added.on_conflict_do_update(index_elements=["outcome"], set_={"number": counts.c.number + number})
            )
