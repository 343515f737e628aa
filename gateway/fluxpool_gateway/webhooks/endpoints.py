"""Endpoints of tenants, and the statements that read and write them. The caller owns the transaction.

Whatever touches the deliveries of an endpoint first locks its row: so two transactions that do cannot pass each other,
and where several endpoints are locked it is in the order of their ids, so that they cannot wait for each other.
"""

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self

from sqlalchemy import Connection, Select, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping

from fluxpool_gateway.webhooks.signing import Secret
from fluxpool_gateway.webhooks.tables import attempts, deliveries, endpoints

MAX_ENDPOINTS: Final = 20
"""Of a tenant: each gets a copy of each event."""
MAX_SECRETS: Final = 5
"""Of an endpoint, while it is rotated again and again: each adds a signature to the header."""


class TooManyEndpointsError(Exception):
    """The tenant has as many as it may already."""


class EndpointKind(StrEnum):
    """Who made an endpoint."""

    REGISTERED = "registered"
    """Its owner, with a URL and event types."""
    REQUESTS = "requests"
    """Requests that name a webhook: all those of a tenant with URLs of one host (`requested`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address that a tenant is told events at."""

    endpoint_id: str
    tenant: str
    name: str
    url: str
    event_types: tuple[str, ...]
    """Empty: all."""
    enabled: bool = True
    disabled_because: str | None = None
    """Of one that was disabled by its answer."""
    secrets: tuple[Secret, ...]
    """The newest first."""
    created_at_ms: int
    told_from_ms: int
    """It is told of what ends from then on: since it was created, or enabled again."""
    failures: int = 0
    """Failed attempts since the last one that succeeded."""
    kind: EndpointKind = EndpointKind.REGISTERED

    @classmethod
    def new(
        cls,
        tenant: str,
        *,
        name: str,
        url: str,
        event_types: Sequence[str],
        enabled: bool = True,
        secret: str,
        now_ms: int,
    ) -> Self:
        """One with a secret of its own, in the form in which it is stored."""
        return cls(
            endpoint_id=f"whe_{secrets.token_hex(12)}",
            tenant=tenant,
            name=name,
            url=url,
            event_types=tuple(event_types),
            enabled=enabled,
            secrets=(Secret(secret),),
            created_at_ms=now_ms,
            told_from_ms=now_ms,
        )

    def wants(self, type_: str) -> bool:
        """Whether its owner wants events of a type."""
        if self.kind is not EndpointKind.REGISTERED:
            return False
        return self.enabled and (not self.event_types or type_ in self.event_types)

    def changed(
        self,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Collection[str] | None = None,
        enabled: bool | None = None,
    ) -> Self:
        """With other values for what is given."""
        return replace(
            self,
            name=self.name if name is None else name,
            url=self.url if url is None else url,
            event_types=self.event_types if event_types is None else tuple(sorted(event_types)),
            enabled=self.enabled if enabled is None else enabled,
        )

    def rotated(self, secret: str, *, now_ms: int, overlap_ms: int) -> Self:
        """With a new secret; the others are valid until the overlap ends at the latest."""
        return replace(self, secrets=rotated(self.secrets, secret, now_ms=now_ms, overlap_ms=overlap_ms))

    def valid_secrets(self, now_ms: int) -> tuple[str, ...]:
        """What messages are signed with, in the form in which it is stored."""
        return tuple(secret.text for secret in self.secrets if secret.is_valid(now_ms))


def rotated(former: Sequence[Secret], secret: str, *, now_ms: int, overlap_ms: int) -> tuple[Secret, ...]:
    """The secrets after a rotation: the new one first, the others valid until the overlap ends at the latest."""
    end_ms = now_ms + overlap_ms
    ending = (replace(each, expires_at_ms=min(end_ms, each.expires_at_ms or end_ms)) for each in former)
    kept = [each for each in ending if each.is_valid(now_ms)]
    return Secret(secret), *kept[: MAX_SECRETS - 1]


def add_endpoint(connection: Connection, endpoint: Endpoint) -> None:
    """Add a new one; raises `TooManyEndpointsError`."""
    count = select(func.count()).where(endpoints.c.tenant == endpoint.tenant, endpoints.c.kind == endpoint.kind)
    if connection.execute(count).scalar_one() >= MAX_ENDPOINTS:
        raise TooManyEndpointsError
    row = to_row(endpoint)
    connection.execute(insert(endpoints).values(**row, leased_until_ms=0))


def list_endpoints(connection: Connection, tenant: str) -> list[Endpoint]:
    """Those of a tenant, the oldest first."""
    query = select(endpoints).where(endpoints.c.tenant == tenant)
    rows = connection.execute(query.order_by(endpoints.c.created_at_ms, endpoints.c.endpoint_id)).mappings()
    return [to_endpoint(row) for row in rows]


def find_endpoint(connection: Connection, tenant: str, endpoint_id: str, *, lock: bool = False) -> Endpoint | None:
    """The tenant's endpoint with this id."""
    query: Select[Any] = select(endpoints).where(endpoints.c.tenant == tenant, endpoints.c.endpoint_id == endpoint_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else to_endpoint(row)


def save_endpoint(connection: Connection, endpoint: Endpoint) -> None:
    """Replace what its owner can change, and what follows from that."""
    connection.execute(
        update(endpoints).where(endpoints.c.endpoint_id == endpoint.endpoint_id).values(to_row(endpoint))
    )


def delete_endpoint(connection: Connection, tenant: str, endpoint_id: str) -> bool:
    """Delete it with its deliveries; whether there was one. What is under way is not stopped."""
    # The row first, which locks it.
    mine = endpoints.c.tenant == tenant, endpoints.c.endpoint_id == endpoint_id
    if not connection.execute(delete(endpoints).where(*mine)).rowcount:
        return False
    of_endpoint = select(deliveries.c.delivery_id).where(deliveries.c.endpoint_id == endpoint_id)
    connection.execute(delete(attempts).where(attempts.c.delivery_id.in_(of_endpoint)))
    connection.execute(delete(deliveries).where(deliveries.c.endpoint_id == endpoint_id))
    return True


def tenants_to_tell(connection: Connection) -> dict[str, int]:
    """The tenants with an enabled endpoint, and the earliest time that one of these is told from."""
    first_at = func.min(endpoints.c.told_from_ms).label("first_at_ms")
    query = select(endpoints.c.tenant, first_at).where(endpoints.c.enabled).group_by(endpoints.c.tenant)
    return {row.tenant: row.first_at_ms for row in connection.execute(query)}


def lock_enabled(connection: Connection, tenants: Sequence[str]) -> list[Endpoint]:
    """The enabled endpoints of these tenants, locked."""
    query = select(endpoints).where(endpoints.c.tenant.in_(tenants), endpoints.c.enabled)
    rows = connection.execute(query.order_by(endpoints.c.endpoint_id).with_for_update()).mappings()
    return [to_endpoint(row) for row in rows]


def to_endpoint(row: RowMapping) -> Endpoint:
    """The endpoint in a row."""
    values = {name: row[name] for name in _FIELDS}
    values["event_types"] = tuple(row["event_types"].split())
    values["secrets"] = read_secrets(row["secrets"])
    values["kind"] = EndpointKind(row["kind"])
    return Endpoint(**values)


_FIELDS: Final = tuple(Endpoint.__dataclass_fields__)


def to_row(endpoint: Endpoint) -> dict[str, Any]:
    """What an endpoint's row has of it."""
    row = {name: getattr(endpoint, name) for name in _FIELDS}
    row["event_types"] = " ".join(endpoint.event_types)
    row["secrets"] = write_secrets(endpoint.secrets)
    return row


def read_secrets(text: str) -> tuple[Secret, ...]:
    """The secrets in a column."""
    return tuple(Secret(**secret) for secret in json.loads(text))


def write_secrets(kept: Sequence[Secret]) -> str:
    """What a column has of secrets."""
    return json.dumps([asdict(secret) for secret in kept])
