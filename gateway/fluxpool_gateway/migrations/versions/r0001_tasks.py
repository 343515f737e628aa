"""Tasks, the offsets they were read up to, and the projector's heartbeat."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "task",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("total_steps", sa.Integer),
        sa.Column("body", sa.Text),
        sa.Column("priority", sa.String(16)),
        sa.Column("tenant", sa.String(63)),
        sa.Column("created_at_ms", sa.BigInteger),
        sa.Column("started_at_ms", sa.BigInteger),
        sa.Column("completed_at_ms", sa.BigInteger),
        sa.Column("result", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "projected_offset",
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "projector_heartbeat",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("beat_at_ms", sa.BigInteger, nullable=False),
        sa.Column("caught_up_at_ms", sa.BigInteger),
        sa.Column("lag_records", sa.BigInteger),
    )
