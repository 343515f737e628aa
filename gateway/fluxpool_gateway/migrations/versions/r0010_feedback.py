"""What people say of images."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def _ordered(length: int) -> sa.String:
    """Text in the order of its bytes on every database."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _record() -> list[sa.Column[object]]:
    """The record itself, and where it lies."""
    return [
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
    ]


def upgrade() -> None:
    """Make the tables; the projector reads the topic from its beginning."""
    op.create_table(
        "rating",
        sa.Column("tenant", _ordered(63), primary_key=True),
        sa.Column("rating_id", _ordered(128), primary_key=True),
        sa.Column("request_id", _ordered(128), nullable=False),
        sa.Column("image_index", sa.Integer, nullable=False),
        sa.Column("rater_hash", sa.String(128), nullable=False),
        sa.Column("score", sa.Integer),
        sa.Column("reward_quarters", sa.Integer),
        sa.Column("model", sa.Text),
        sa.Column("pool", sa.Text),
        sa.Column("preset", sa.Text),
        sa.Column("steps", sa.Integer),
        sa.Column("prompt_key", sa.String(32)),
        *_record(),
        sqlite_with_rowid=False,
    )
    op.create_index("rating_by_task", "rating", ["tenant", "request_id"])
    op.create_table(
        "comparison",
        sa.Column("tenant", _ordered(63), primary_key=True),
        sa.Column("rating_id", _ordered(128), primary_key=True),
        sa.Column("a_request_id", _ordered(128), nullable=False),
        sa.Column("a_index", sa.Integer, nullable=False),
        sa.Column("b_request_id", _ordered(128), nullable=False),
        sa.Column("b_index", sa.Integer, nullable=False),
        sa.Column("rater_hash", sa.String(128), nullable=False),
        sa.Column("preferred", sa.String(16), nullable=False),
        *(sa.Column(f"{side}_{name}", sa.Text) for side in "ab" for name in ("model", "pool", "preset")),
        *(sa.Column(f"{side}_steps", sa.Integer) for side in "ab"),
        *_record(),
        sqlite_with_rowid=False,
    )
    op.create_index("comparison_by_a", "comparison", ["tenant", "a_request_id"])
    op.create_index("comparison_by_b", "comparison", ["tenant", "b_request_id"])
