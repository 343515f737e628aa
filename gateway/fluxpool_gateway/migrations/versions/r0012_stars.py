"""Tasks with a star are found by the time of the star."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the index; a star is a rating, so that the rows are there."""
    stars = sa.text("rater_hash = 'stars'")
    op.create_index("star_by_time", "rating", ["tenant", "created_at_ms"], sqlite_where=stars, postgresql_where=stars)
