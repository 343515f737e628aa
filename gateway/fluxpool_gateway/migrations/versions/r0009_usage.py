"""What each tenant used in each hour."""

from collections import Counter

import sqlalchemy as sa
from alembic import op

from fluxpool_gateway.usage.figures import Figures

revision = "0009"
down_revision = "0008"

_ENDED = sa.text(
    "SELECT tenant, status, completed_at_ms, result FROM task"
    " WHERE status IN ('succeeded', 'failed', 'expired', 'canceled')"
    " AND result IS NOT NULL AND completed_at_ms IS NOT NULL"
)
_ROWS_AT_ONCE = 1000
_HOUR_MS = 3_600_000


def _ordered(length: int) -> sa.String:
    """Text in the order of its bytes on every database."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table, and count the tasks that have ended; those that were deleted before are not known any more."""
    hours = op.create_table(
        "usage_hour",
        sa.Column("tenant", _ordered(63), primary_key=True),
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("tasks", sa.BigInteger, nullable=False),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.Column("pixels", sa.BigInteger, nullable=False),
        sa.Column("gpu_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    sums: dict[tuple[str, int, str], Counter[str]] = {}
    # Results may be larger than the memory.
    options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
    for row in op.get_bind().execute(_ENDED, execution_options=options):
        # As the projector does, so that it takes out again what was counted here.
        used = Figures.of_stored(row.result)
        counted = sums.setdefault((row.tenant, row.completed_at_ms // _HOUR_MS, row.status), Counter())
        counted.update(tasks=1, images=used.images, pixels=used.pixels, gpu_ms=used.gpu_ms)
    op.bulk_insert(
        hours,
        [
            {"tenant": tenant, "hour": hour, "outcome": outcome, **counted}
            for (tenant, hour, outcome), counted in sums.items()
        ],
    )
