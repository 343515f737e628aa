"""What keys may ask for in submissions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Keys from before keep what they had."""
    op.add_column("api_key", sa.Column("priorities", sa.String(64), nullable=False, server_default="standard vip"))
    op.add_column("api_key", sa.Column("qualities", sa.String(64)))
    op.add_column("api_key", sa.Column("loras", sa.Text))
