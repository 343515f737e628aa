"""Empties the task store on PostgreSQL, so that the projector builds it again from Kafka.

On SQLite the file is deleted for that. Keys, reservations and the counts of limits stay: Kafka does not have them.
"""

import secrets
import time
from typing import Final

from sqlalchemy import text

from fluxpool_gateway.store.postgres.connection import open_shared

_REASON: Final = "it was asked for"
_RENAME: Final = text(
    "UPDATE change_counter SET first_number = greatest(:first, last_number + 1),"
    " last_number = greatest(:first, last_number + 1)"
)
_EMPTY: Final = text("TRUNCATE task, projected_offset, quarantined_record, usage_hour, rating, comparison, dead_letter")
_TELL: Final = text(
    "UPDATE projector_heartbeat SET caught_up_at_ms = NULL, lag_records = NULL, rebuilt_because = :reason"
)


def empty_store(url: str) -> None:
    """Empty it while the gateway runs. Raises SQLAlchemy's `DBAPIError`.

    A projector that knew the store before saves nothing any more: it finds another number at the next transaction.
    """
    engine = open_shared(url, "rebuild")
    try:
        with engine.begin() as connection:
            # First: every transaction of the projector locks this row, so none is under way behind it.
            first = time.time_ns() // 1_000_000 * 1000 + secrets.randbelow(1000)
            connection.execute(_RENAME, {"first": first})
            connection.execute(_EMPTY)
            connection.execute(_TELL, {"reason": _REASON})
    finally:
        engine.dispose()
