"""On PostgreSQL the replicas of a gateway share reservations and the counts of limits.

On SQLite these have files of their own (`store.reservations`, `store.quota_file`), which are made again when they are
damaged.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the tables, with the columns of those files."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.create_table(
        "reservation",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("standing", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("reservation_by_time", "reservation", ["standing", "at_ms"])
    op.create_table(
        "hits",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "admission",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "counted",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("unfinished", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
