"""Dead letters and their resolutions, and on PostgreSQL the replay jobs that replicas share.

On SQLite the jobs have a file of their own (`dead_letters.jobs`). The topic is read from its beginning.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "dead_letter",
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("failure", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("failed_at_ms", sa.BigInteger, nullable=False),
        sa.Column("stored_at_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("disposition", sa.Text),
        sa.Column("origin_topic", sa.Text),
        sa.Column("pool", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("worker", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("value_bytes", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("resolution", sa.Text),
        sa.Column("resolved_at_ms", sa.BigInteger),
    )
    op.create_index("dead_letter_by_time", "dead_letter", ["topic", "failed_at_ms"])
    op.create_index("dead_letter_by_failure", "dead_letter", ["topic", "failure", "partition", "offset"])
    if op.get_bind().dialect.name != "postgresql":
        return
    op.create_table(
        "replay_job",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("leased_until_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("problem", sa.Text, nullable=False),
    )
    op.create_table(
        "replay_item",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("detail", sa.Text),
    )
