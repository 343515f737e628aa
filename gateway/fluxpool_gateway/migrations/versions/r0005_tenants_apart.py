"""A task is known by its id and its tenant: two tenants may choose the same id."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_COLUMNS = (
    "version, status, attempts, step, total_steps, body, priority, created_at_ms, started_at_ms, completed_at_ms, "
    "result, group_id"
)


def _ordered(length: int) -> sa.String:
    """Text in the order of its bytes on every database."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Copy the tasks into a table with the new key, and read every topic from its beginning once more.

    Tasks of two tenants that had one id share a row here, of which only Kafka tells the parts. A row without a tenant
    was shown to none.
    """
    op.create_table(
        "task_by_tenant",
        sa.Column("request_id", _ordered(128), primary_key=True),
        sa.Column("tenant", _ordered(63), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("total_steps", sa.Integer),
        sa.Column("body", sa.Text),
        sa.Column("priority", sa.String(16)),
        sa.Column("created_at_ms", sa.BigInteger),
        sa.Column("started_at_ms", sa.BigInteger),
        sa.Column("completed_at_ms", sa.BigInteger),
        sa.Column("result", sa.Text),
        sa.Column("group_id", sa.String(64)),
        sqlite_with_rowid=False,
    )
    # The text is made of the constant above.
    op.execute(
        f"INSERT INTO task_by_tenant (request_id, tenant, {_COLUMNS}) "  # noqa: S608
        f"SELECT request_id, coalesce(tenant, ''), {_COLUMNS} FROM task"
    )
    op.drop_table("task")
    op.rename_table("task_by_tenant", "task")
    listed: list[str | sa.TextClause] = [
        "tenant",
        sa.text("coalesce(created_at_ms, completed_at_ms, 0)"),
        "request_id",
    ]
    op.create_index("task_by_time", "task", listed)
    not_ended = sa.text("status IN ('queued', 'running')")
    op.create_index("task_not_ended", "task", listed, sqlite_where=not_ended, postgresql_where=not_ended)
    unsuccessful = sa.text("status IN ('failed', 'expired', 'canceled')")
    op.create_index("task_unsuccessful", "task", listed, sqlite_where=unsuccessful, postgresql_where=unsuccessful)
    op.create_index(
        "task_by_group",
        "task",
        ["tenant", "group_id", *listed[1:], "status"],
        sqlite_where=sa.text("group_id IS NOT NULL"),
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )
    op.execute("DELETE FROM projected_offset")
    # The reservations of the release before are dropped with their file: until the projector has caught up again,
    # the store does not count as complete, so that no key of theirs is taken for a new one.
    op.execute("UPDATE projector_heartbeat SET caught_up_at_ms = NULL")
