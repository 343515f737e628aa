"""Tasks are listed by time, those that have not ended and those without success also apart, and know their group."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_LISTED_AT = "coalesce(created_at_ms, completed_at_ms, 0)"


def upgrade() -> None:
    """Add the group's column and the indexes of lists. No task of an earlier release is in a group."""
    op.add_column("task", sa.Column("group_id", sa.String(64)))
    listed: list[str | sa.TextClause] = ["tenant", sa.text(_LISTED_AT), "request_id"]
    op.create_index("task_by_time", "task", listed)
    not_ended = sa.text("status IN ('queued', 'running')")
    op.create_index("task_not_ended", "task", listed, sqlite_where=not_ended, postgresql_where=not_ended)
    unsuccessful = sa.text("status IN ('failed', 'expired', 'canceled')")
    op.create_index("task_unsuccessful", "task", listed, sqlite_where=unsuccessful, postgresql_where=unsuccessful)
    in_group = sa.text("group_id IS NOT NULL")
    op.create_index(
        "task_by_group",
        "task",
        ["tenant", "group_id", sa.text(_LISTED_AT), "request_id", "status"],
        sqlite_where=in_group,
        postgresql_where=in_group,
    )
