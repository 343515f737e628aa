"""Limits of keys."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Keys from before have none."""
    op.add_column("api_key", sa.Column("submit_limit", sa.String(16)))
    op.add_column("api_key", sa.Column("bucket", sa.String(12)))
