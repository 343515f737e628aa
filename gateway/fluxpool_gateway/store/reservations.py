"""Idempotency reservations: which body holds which key, in a file or tables that all server processes share.

A key is reserved before its record is written, so that of two bodies one is refused while neither is in Kafka yet. Owns
the statements. Rows whose task the task store knows are redundant and are purged.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from fluxpool_gateway.store.shared_file import SharedFile, Statements
from fluxpool_gateway.store.task_state import TaskKey

FILE_SUFFIX: Final = ".reservations"
UNKNOWN_KEPT_SECONDS: Final = 24 * 3600
"""A body whose outcome is unknown holds its key so long; clients stop repeating earlier."""
PURGED_AT_ONCE: Final = 2000
"""Rows of one purge, so that it holds up a submission for some milliseconds at most."""
_SCHEMA_VERSION: Final = 2
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS reservation (request_id TEXT, tenant TEXT, digest TEXT NOT NULL,
    standing TEXT NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (request_id, tenant)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS reservation_by_time ON reservation (standing, at_ms)",
)
_OWN: Final = "request_id = ? AND tenant = ? AND digest = ?"


class RecordState(StrEnum):
    """What is known of the record of a reservation."""

    WRITING = "writing"
    ACCEPTED = "accepted"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """What a reservation came to."""

    GRANTED = "granted"
    """The id was free. Write the record, then settle."""
    GRANTED_AGAIN = "granted_again"
    """The same body holds it, but its outcome is unknown. Write the record, then settle."""
    ACCEPTED = "accepted"
    """The same body was accepted."""
    SAME_IN_PROGRESS = "same_in_progress"
    OTHER_IN_PROGRESS = "other_in_progress"
    OTHER = "other"
    """Another body was accepted, or may have been."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a `Reserve`; the other operations have no outcome."""

    verdict: Verdict
    settled_at_ms: int = 0
    """When the body was accepted."""


_NO_OUTCOME: Final = Outcome(Verdict.GRANTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Reserve an id for a body."""

    key: TaskKey
    digest: str
    patience_ms: int
    """After this time a reservation that was not settled no longer counts as being written: its process is gone."""
    again: bool = False
    """Also where the same body was accepted already: its record is lost."""

    def apply(self, connection: Statements, now_ms: int) -> Outcome:
        """`at_ms` of a row that is being written is the time until which it counts as that."""
        query = "SELECT digest, standing, at_ms FROM reservation WHERE request_id = ? AND tenant = ?"
        row = connection.execute(query, self.key).fetchone()
        if row is not None:
            digest, standing, at_ms = row
            same = digest == self.digest
            if standing == RecordState.WRITING and at_ms > now_ms:
                return Outcome(Verdict.SAME_IN_PROGRESS if same else Verdict.OTHER_IN_PROGRESS)
            if not same:
                return Outcome(Verdict.OTHER)
            if standing == RecordState.ACCEPTED and not self.again:
                return Outcome(Verdict.ACCEPTED, settled_at_ms=at_ms)
        connection.execute(
            "INSERT INTO reservation VALUES (?, ?, ?, ?, ?) ON CONFLICT (request_id, tenant)"
            " DO UPDATE SET digest = excluded.digest, standing = excluded.standing, at_ms = excluded.at_ms",
            [*self.key, self.digest, RecordState.WRITING.value, now_ms + self.patience_ms],
        )
        return Outcome(Verdict.GRANTED if row is None else Verdict.GRANTED_AGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Say what became of the record; None releases the id, because there certainly is no record."""

    key: TaskKey
    digest: str
    standing: RecordState | None

    def apply(self, connection: Statements, now_ms: int) -> Outcome:
        """Of the own body only: past its time the id may be another's. What was accepted stays so."""
        if self.standing is None:
            connection.execute(
                f"DELETE FROM reservation WHERE {_OWN} AND standing = ?",  # noqa: S608 - a constant
                [*self.key, self.digest, RecordState.WRITING.value],
            )
        else:
            connection.execute(
                f"UPDATE reservation SET standing = ?, at_ms = ? WHERE {_OWN} AND standing != ?",  # noqa: S608
                [self.standing.value, now_ms, *self.key, self.digest, RecordState.ACCEPTED.value],
            )
        return _NO_OUTCOME


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """Remove what was accepted before a time, and what is unknown for long."""

    accepted_before_ms: int

    def apply(self, connection: Statements, now_ms: int) -> Outcome:
        """At most `PURGED_AT_ONCE` rows of each state."""
        unknown_before_ms = now_ms - UNKNOWN_KEPT_SECONDS * 1000
        for standing, before_ms in (
            (RecordState.ACCEPTED, self.accepted_before_ms),
            (RecordState.UNKNOWN, unknown_before_ms),
            (RecordState.WRITING, unknown_before_ms),
        ):
            connection.execute(
                "DELETE FROM reservation WHERE (request_id, tenant) IN (SELECT request_id, tenant FROM reservation"
                " WHERE standing = ? AND at_ms < ? ORDER BY at_ms LIMIT ?)",
                [standing.value, before_ms, PURGED_AT_ONCE],
            )
        return _NO_OUTCOME


ReservationOperation = Reserve | Settle | Purge


def reservation_file(file: Path) -> SharedFile:
    """The reservations in this file."""
    return SharedFile(file, schema=_SCHEMA, version=_SCHEMA_VERSION)
