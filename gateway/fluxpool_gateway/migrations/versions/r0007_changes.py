"""A row knows when it changed last, in the order of all changes of the store."""

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the number of the last change. Rows get theirs when they change next."""
    op.add_column("task", sa.Column("change_number", sa.BigInteger))
    op.create_index("task_by_change", "task", ["tenant", "change_number"])
    counter = op.create_table(
        "change_counter",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("first_number", sa.BigInteger, nullable=False),
        sa.Column("last_number", sa.BigInteger, nullable=False),
    )
    # Names this store: above every number of an older one, and with a random part for one that is made beside it.
    first = time.time_ns() // 1_000_000 * 1000 + secrets.randbelow(1000)
    op.bulk_insert(counter, [{"id": 1, "first_number": first, "last_number": first}])
