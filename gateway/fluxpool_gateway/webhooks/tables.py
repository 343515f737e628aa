"""The tables of webhooks, as the newest migration leaves them. Kafka cannot build them again."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

IS_PENDING: Final = "state = 'pending'"
"""A database uses an index with a condition only where a statement has the same one."""
_NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of this type."""

endpoints = Table(
    "webhook_endpoint",
    metadata,
    Column("endpoint_id", String(32), primary_key=True),
    Column("tenant", String(63), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_because", Text),
    Column("secrets", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("told_from_ms", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("due_at_ms", BigInteger),
    Column("lease", String(32)),
    Column("leased_until_ms", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False, server_default="registered"),
    Column("used_at_ms", BigInteger, nullable=False, server_default="0"),
)
Index("webhook_endpoint_due", endpoints.c.due_at_ms)

events = Table(
    "webhook_event",
    metadata,
    Column("event_id", String(40), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("type", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False, index=True),
)

deliveries = Table(
    "webhook_delivery",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    Column("delivery_id", String(32), nullable=False, unique=True),
    Column("endpoint_id", String(32), nullable=False),
    Column("event_id", String(40), nullable=False, index=True),
    Column("tenant", String(63), nullable=False),
    Column("type", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("queued_at_ms", BigInteger, nullable=False),
    Column("due_at_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger),
    Column("last_error", String(32)),
    Column("url", Text),
    UniqueConstraint("endpoint_id", "event_id"),
)
Index(
    "webhook_delivery_pending",
    deliveries.c.endpoint_id,
    deliveries.c.queued_at_ms,
    deliveries.c.number,
    sqlite_where=text(IS_PENDING),
    postgresql_where=text(IS_PENDING),
)
Index("webhook_delivery_listed", deliveries.c.endpoint_id, deliveries.c.number)
Index("webhook_delivery_by_time", deliveries.c.created_at_ms)

attempts = Table(
    "webhook_attempt",
    metadata,
    Column("delivery_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("latency_ms", Integer, nullable=False),
    Column("status", Integer),
    Column("error", String(32)),
    Column("reason", Text),
    Column("answer", Text, nullable=False),
)

cursors = Table(
    "webhook_cursor",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("first_number", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("queued_at_ms", BigInteger, nullable=False),
)

groups = Table(
    "webhook_group",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("group_id", String(64), primary_key=True),
    Column("changed_at_ms", BigInteger, nullable=False, index=True),
)

signers = Table(
    "webhook_signer",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("secrets", Text, nullable=False),
)

counts = Table(
    "webhook_count",
    metadata,
    Column("outcome", String(16), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
