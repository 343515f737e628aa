"""Webhooks that requests name: endpoints of hosts, URLs of deliveries, and the secrets of tenants that sign them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them."""
    op.add_column("webhook_endpoint", sa.Column("kind", sa.String(16), nullable=False, server_default="registered"))
    op.add_column("webhook_endpoint", sa.Column("used_at_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("webhook_delivery", sa.Column("url", sa.Text))
    op.create_table(
        "webhook_signer",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("secrets", sa.Text, nullable=False),
    )
