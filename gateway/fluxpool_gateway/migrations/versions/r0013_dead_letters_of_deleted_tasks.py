"""Dead letters are found by their task, and those of deleted tasks keep nothing of it."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the index, and erase what is there."""
    op.create_index("dead_letter_by_task", "dead_letter", ["request_id"])
    op.execute(
        "UPDATE dead_letter SET state = 'deleted', body = NULL, problem = '', resolution = NULL, resolved_at_ms = NULL"
        " WHERE EXISTS (SELECT 1 FROM task WHERE task.request_id = dead_letter.request_id"
        " AND task.tenant = dead_letter.tenant AND task.status = 'deleted')"
    )
