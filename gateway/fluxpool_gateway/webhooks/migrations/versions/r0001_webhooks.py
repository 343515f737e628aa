"""Endpoints of webhooks, their events and deliveries, and how far ends of tasks were read."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_PENDING = sa.text("state = 'pending'")
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "webhook_endpoint",
        sa.Column("endpoint_id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False, index=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("event_types", sa.Text, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("disabled_because", sa.Text),
        sa.Column("secrets", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("told_from_ms", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("due_at_ms", sa.BigInteger),
        sa.Column("lease", sa.String(32)),
        sa.Column("leased_until_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("webhook_endpoint_due", "webhook_endpoint", ["due_at_ms"])
    op.create_table(
        "webhook_event",
        sa.Column("event_id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False, index=True),
    )
    _make_deliveries()
    op.create_table(
        "webhook_attempt",
        sa.Column("delivery_id", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("latency_ms", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.String(32)),
        sa.Column("reason", sa.Text),
        sa.Column("answer", sa.Text, nullable=False),
    )
    op.create_table(
        "webhook_cursor",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("first_number", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "webhook_group",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("group_id", sa.String(64), primary_key=True),
        sa.Column("changed_at_ms", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "webhook_count",
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )


def _make_deliveries() -> None:
    op.create_table(
        "webhook_delivery",
        sa.Column("number", _NUMBER, primary_key=True),
        sa.Column("delivery_id", sa.String(32), nullable=False, unique=True),
        sa.Column("endpoint_id", sa.String(32), nullable=False),
        sa.Column("event_id", sa.String(40), nullable=False, index=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("due_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("last_error", sa.String(32)),
        sa.UniqueConstraint("endpoint_id", "event_id"),
    )
    op.create_index(
        "webhook_delivery_pending",
        "webhook_delivery",
        ["endpoint_id", "queued_at_ms", "number"],
        sqlite_where=_PENDING,
        postgresql_where=_PENDING,
    )
    op.create_index("webhook_delivery_listed", "webhook_delivery", ["endpoint_id", "number"])
    op.create_index("webhook_delivery_by_time", "webhook_delivery", ["created_at_ms"])
