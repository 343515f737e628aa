"""Offsets say of which topic they are, and records that could not be applied are kept apart."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the topic ids; the offsets without one are dropped, so every topic is read from its beginning once more.

    Nothing tells whether they are offsets of the topics that now have these names. Reading a record twice changes
    nothing, and the tasks stay.
    """
    op.execute("DELETE FROM projected_offset")
    op.add_column("projected_offset", sa.Column("topic_id", sa.String(64)))
    op.add_column("projector_heartbeat", sa.Column("rebuilt_because", sa.Text))
    op.create_table(
        "quarantined_record",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("topic", "partition", "offset"),
    )
