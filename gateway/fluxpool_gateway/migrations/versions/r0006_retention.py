"""A row knows the record that it lasts as long as."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the place of the record, and read every topic from its beginning once more to fill it in.

    Rows that get none are of records that Kafka has deleted, and are deleted as well once all topics were read.
    """
    op.add_column("task", sa.Column("source_rank", sa.BigInteger))
    op.add_column("task", sa.Column("source_topic", sa.String(249)))
    op.add_column("task", sa.Column("source_partition", sa.Integer))
    op.add_column("task", sa.Column("source_offset", sa.BigInteger))
    op.execute("DELETE FROM projected_offset")
