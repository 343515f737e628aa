"""Classifies errors of SQLite and PostgreSQL: a fault of one record, which is quarantined, or of the database.

Pure. Decides by SQLite's result codes (https://sqlite.org/rescode.html) and by PostgreSQL's SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html); knows nothing of what follows, and imports no driver.
"""

import sqlite3
from enum import StrEnum
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, ProgrammingError, StatementError

_PRIMARY_CODE: Final = 0xFF
"""Extended result codes carry the primary one in their lowest byte."""
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_DAMAGE_EXTENDED: Final = frozenset({sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS})
_REFUSAL: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
)
_RECORD_ERRORS: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
_NO_SCHEMA_STATES: Final = frozenset({"42P01", "42703", "3F000"})
"""Undefined table, column, schema."""
_REFUSAL_STATES: Final = frozenset({"28000", "28P01", "3D000", "42501"})
"""Login refused, no such database, insufficient privilege."""
_RECORD_STATES: Final = ("21", "22", "23", "54")
"""Classes of states: cardinality, data, constraints, limits of a row."""


class DamagedStoreError(Exception):
    """What was read from the store is not what was ever written there."""


class DatabaseFault(StrEnum):
    """What is wrong with a database that failed a statement."""

    DAMAGED = "damaged"
    """Only building it again helps."""
    NO_SCHEMA = "no_schema"
    """Tables or columns are missing: the projector is about to create them, or the file was emptied."""
    INACCESSIBLE = "inaccessible"
    """It may not be opened or written: permissions must change."""
    TRANSIENT = "transient"
    """Locked, a full disk, a failing disk: the same statement may succeed later."""


def fault_of(error: Exception) -> DatabaseFault:
    """What an error of a statement says of the database; the statement itself is taken to be right."""
    if isinstance(error, DamagedStoreError):
        return DatabaseFault.DAMAGED
    cause = error.orig if isinstance(error, StatementError) else error
    if cause is not None and hasattr(cause, "sqlstate"):
        return _fault_by_state(cause.sqlstate)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        # Raised by Python's driver, for text that is no UTF-8 in a column that only ever got valid text.
        return DatabaseFault.DAMAGED if isinstance(cause, sqlite3.OperationalError) else DatabaseFault.TRANSIENT
    primary = code & _PRIMARY_CODE
    if primary in _DAMAGE or code in _DAMAGE_EXTENDED:
        return DatabaseFault.DAMAGED
    if primary == sqlite3.SQLITE_ERROR:
        return DatabaseFault.NO_SCHEMA
    return DatabaseFault.INACCESSIBLE if primary in _REFUSAL else DatabaseFault.TRANSIENT


def _fault_by_state(state: str | None) -> DatabaseFault:
    """By SQLSTATE, which a connection that failed does not have. PostgreSQL's damaged files are its operator's."""
    if state in _NO_SCHEMA_STATES:
        return DatabaseFault.NO_SCHEMA
    return DatabaseFault.INACCESSIBLE if state in _REFUSAL_STATES else DatabaseFault.TRANSIENT


def is_record_fault(error: Exception) -> bool:
    """Whether an error while a record is folded and saved comes from what the record holds.

    Values that do not fit a column are refused by the driver (`OverflowError`, `UnicodeEncodeError`) or by the database
    (constraints, sizes); folding itself is pure, so whatever it raises is the record's too.
    """
    cause = error.orig if isinstance(error, StatementError) else error
    if cause is not None and hasattr(cause, "sqlstate"):
        # Without a state the driver refused it before it was sent, or the connection is gone.
        state = cause.sqlstate
        return isinstance(error, (DataError, ProgrammingError)) if state is None else state[:2] in _RECORD_STATES
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, _RECORD_ERRORS)
    return not isinstance(cause, (DamagedStoreError, DBAPIError, OSError, MemoryError))
