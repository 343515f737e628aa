"""Endpoints of webhooks that requests name, and the secrets that sign these; the caller owns the transaction.

A host has one endpoint for each tenant, whatever the paths of its URLs: so its messages come one after the other, and a
host that hangs holds up no others. Its row is made before the first such task is written: the collector reads the ends
of tenants that have an endpoint. All of a tenant are signed with the same secrets, because no one could know the secret
of an endpoint that a request makes.
"""

import hashlib
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert_postgresql
from sqlalchemy.dialects.sqlite import insert as upsert_sqlite

from fluxpool_gateway.webhooks.endpoints import (
    Endpoint,
    EndpointKind,
    TooManyEndpointsError,
    read_secrets,
    rotated,
    to_row,
    write_secrets,
)
from fluxpool_gateway.webhooks.signing import Secret
from fluxpool_gateway.webhooks.tables import endpoints, signers

MAX_HOSTS: Final = 50
"""Of a tenant: each can occupy a place of the dispatcher."""
UNUSED_MS: Final = 30 * 24 * 3600 * 1000
"""After so long without a request that names the host its endpoint is forgotten; a task is rarely older."""


def host_of(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def requested_endpoint_id(tenant: str, url: str) -> str:
    """Id of the endpoint that a URL belongs to."""
    # No tenant has a line end.
    named = f"{tenant}\n{host_of(url)}"
    return f"whr_{hashlib.sha256(named.encode()).hexdigest()[:24]}"


def use_requested(connection: Connection, tenant: str, url: str, *, new_secret: str, now_ms: int) -> None:
    """Make the endpoint of a URL, or note that it is used; the tenant's first one makes `new_secret` its secret.

    Raises `TooManyEndpointsError`.
    """
    endpoint_id = requested_endpoint_id(tenant, url)
    used = update(endpoints).where(endpoints.c.endpoint_id == endpoint_id).values(used_at_ms=now_ms)
    if connection.execute(used).rowcount:
        return
    kept = _lock_signer(connection, tenant, new_secret)
    count = select(func.count()).where(endpoints.c.tenant == tenant, endpoints.c.kind == EndpointKind.REQUESTS)
    if connection.execute(count).scalar_one() >= MAX_HOSTS:
        raise TooManyEndpointsError
    host = host_of(url)
    endpoint = Endpoint(
        endpoint_id=endpoint_id,
        tenant=tenant,
        name="requests",
        url=host,
        event_types=(),
        secrets=kept,
        created_at_ms=now_ms,
        told_from_ms=now_ms,
        kind=EndpointKind.REQUESTS,
    )
    # The lock of the signer lets one transaction of the tenant come here at a time.
    if not connection.execute(used).rowcount:
        connection.execute(insert(endpoints).values(**to_row(endpoint), leased_until_ms=0, used_at_ms=now_ms))


def rotate_requested(
    connection: Connection, tenant: str, secret: str, *, now_ms: int, overlap_ms: int
) -> Sequence[Secret]:
    """Sign webhooks of the tenant's requests with another secret; returns those that are valid, the newest first."""
    former = _lock_signer(connection, tenant, secret)
    # Its first secret was made here.
    is_first = [each.text for each in former] == [secret]
    kept = former if is_first else rotated(former, secret, now_ms=now_ms, overlap_ms=overlap_ms)
    text = write_secrets(kept)
    connection.execute(update(signers).where(signers.c.tenant == tenant).values(secrets=text))
    requested = endpoints.c.tenant == tenant, endpoints.c.kind == EndpointKind.REQUESTS
    # In the order in which all lock them.
    in_order = select(endpoints.c.endpoint_id).where(*requested).order_by(endpoints.c.endpoint_id)
    connection.execute(in_order.with_for_update())
    connection.execute(update(endpoints).where(*requested).values(secrets=text))
    return kept


def _lock_signer(connection: Connection, tenant: str, secret: str) -> tuple[Secret, ...]:
    make = upsert_postgresql if connection.dialect.name == "postgresql" else upsert_sqlite
    first = make(signers).values(tenant=tenant, secrets=write_secrets([Secret(secret)]))
    connection.execute(first.on_conflict_do_nothing(index_elements=["tenant"]))
    query = select(signers.c.secrets).where(signers.c.tenant == tenant).with_for_update()
    return read_secrets(connection.execute(query).scalar_one())
