"""Presets and models that keys are bound to."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Keys from before are bound to none."""
    op.add_column("api_key", sa.Column("presets", sa.Text))
    op.add_column("api_key", sa.Column("models", sa.Text))
