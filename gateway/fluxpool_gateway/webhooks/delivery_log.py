"""The log of deliveries: each with its attempts, pages of an endpoint, and the numbers of the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, literal_column, select
from sqlalchemy.engine import RowMapping

from fluxpool_gateway.webhooks.dispatch.sending import Attempt
from fluxpool_gateway.webhooks.tables import IS_PENDING, attempts, counts, deliveries, events

SHOWN_ATTEMPTS: Final = 100
"""The last ones, of a delivery that was delivered again by hand again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One delivery."""

    number: int
    delivery_id: str
    endpoint_id: str
    event_id: str
    type: str
    state: str
    attempts: int
    created_at_ms: int
    due_at_ms: int
    """When the next attempt is due, of one that is pending."""
    ended_at_ms: int | None
    last_error: str | None
    url: str | None
    """Of one that a request asked for; None: its endpoint's."""
    log: Sequence[Attempt] = ()
    """The attempts in order; of one delivery alone."""
    body: str | None = None
    """The message; of one delivery alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPage:
    """Some deliveries, the newest first."""

    deliveries: Sequence[Delivery]
    next: int | None
    """`before` of the next page; None on the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueNumbers:
    """How the deliveries of all tenants are."""

    ended: Mapping[str, int]
    """Attempts by outcome, since the tables were made."""
    pending: int
    oldest_pending_ms: int | None
    """When the oldest of these was made; None without one."""


def find_delivery(connection: Connection, tenant: str, delivery_id: str) -> Delivery | None:
    """The tenant's delivery with this id."""
    query = select(deliveries, events.c.body).join(events, events.c.event_id == deliveries.c.event_id)
    mine = query.where(deliveries.c.tenant == tenant, deliveries.c.delivery_id == delivery_id)
    row = connection.execute(mine).mappings().first()
    if row is None:
        return None
    made = select(attempts).where(attempts.c.delivery_id == delivery_id)
    found = connection.execute(made.order_by(attempts.c.number.desc()).limit(SHOWN_ATTEMPTS)).mappings()
    log = [Attempt(**{name: attempt[name] for name in _ATTEMPT}) for attempt in found]
    return _to_delivery(row, log=log[::-1], body=row["body"])


def list_deliveries(connection: Connection, *, endpoint_id: str, before: int | None, limit: int) -> DeliveryPage:
    """At most `limit` deliveries to an endpoint, those before a number, the newest first."""
    query = select(deliveries).where(deliveries.c.endpoint_id == endpoint_id)
    if before is not None:
        query = query.where(deliveries.c.number < before)
    rows = connection.execute(query.order_by(deliveries.c.number.desc()).limit(limit + 1)).mappings().all()
    shown = [_to_delivery(row) for row in rows[:limit]]
    return DeliveryPage(deliveries=shown, next=shown[-1].number if len(rows) > limit else None)


def read_numbers(connection: Connection) -> QueueNumbers:
    """The numbers of all tenants."""
    ended = {row.outcome: row.number for row in connection.execute(select(counts))}
    waiting = select(func.count(), func.min(deliveries.c.created_at_ms)).where(literal_column(IS_PENDING))
    pending, oldest_ms = connection.execute(waiting).one()
    return QueueNumbers(ended=ended, pending=pending, oldest_pending_ms=oldest_ms)


_ATTEMPT: Final = ("at_ms", "latency_ms", "status", "error", "reason", "answer")
_FIELDS: Final = tuple(name for name in Delivery.__dataclass_fields__ if name not in {"log", "body"})


def _to_delivery(row: RowMapping, **more: Any) -> Delivery:
    return Delivery(**{name: row[name] for name in _FIELDS}, **more)
