"""Connections to PostgreSQL: for the one projector, for readers, and for short transactions of all replicas.

Owns how a connection is made and the locks. A lock belongs to a session: a proxy between may pool sessions, never
transactions.
"""

from enum import IntEnum
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from fluxpool_gateway.store.postgres.silence import cut_when_silent

OLDEST_VERSION: Final = 130_000
"""PostgreSQL 13, the oldest that its makers supported when this was written, a year more."""
CONNECT_SECONDS: Final = 3
_POOL_SECONDS: Final = 5.0
_UNANSWERED_MILLISECONDS: Final = 5000
_STATEMENT_MILLISECONDS: Final = 10_000
_SILENCE_SECONDS: Final = 11.0
"""After the server's own limit of a statement."""
_PROJECTOR_SILENCE_SECONDS: Final = 120.0
"""Longer than a batch takes on a slow server; no request waits for it."""
_LOCKS_OF_FLUXPOOL: Final = 0x666C7578
"""`flux`: locks of other programs in the same database have another first number."""
_SESSION: Final = (
    # A projector whose machine is gone says no good-bye, and its lock would be held for two hours.
    "tcp_keepalives_idle=5",
    "tcp_keepalives_interval=2",
    "tcp_keepalives_count=3",
    "idle_in_transaction_session_timeout=60000",
)


class Lock(IntEnum):
    """What one session or transaction at a time does in a database."""

    PROJECTOR = 1
    MIGRATION = 2
    RESERVATIONS = 3
    QUOTAS = 4
    KEYS = 5
    REPLAYS = 6


class NotLeaderError(Exception):
    """Another process projects into this database."""


def open_projector(url: str) -> Engine:
    """The engine of the projector: one connection, which holds the lock for as long as it lives.

    So what is written is written under the lock, whatever happens to the connection: a new one takes the lock again, or
    raises `NotLeaderError`. Transactions are on disk some moments after their end; Kafka has what is lost, and offsets
    are lost with the rows.
    """
    engine = _engine(url, "projector", session=("synchronous_commit=off",), connections=1, statement_ms=0)

    @event.listens_for(engine, "connect")
    def _lead(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SELECT pg_try_advisory_lock({_LOCKS_OF_FLUXPOOL}, {Lock.PROJECTOR})")
        (is_leader,) = cursor.fetchone() or (False,)
        cursor.close()
        connection.commit()
        if not is_leader:
            raise NotLeaderError("another process projects into this database")

    return engine


def open_reader(url: str, *, connections: int) -> Engine:
    """The engine of reads: each statement is of one moment, unless `BEGIN_SNAPSHOT` is said before."""
    return _engine(url, "reader", session=(), connections=connections).execution_options(isolation_level="AUTOCOMMIT")


BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


def open_shared(url: str, name: str, *, connections: int = 1, durable: bool = True) -> Engine:
    """The engine of transactions; those that are not `durable` may be lost when the server crashes."""
    return _engine(url, name, session=() if durable else ("synchronous_commit=off",), connections=connections)


def take_lock(connection: Connection, lock: Lock) -> int:
    """Wait for the lock, which lasts as long as the transaction; returns the server's time then, in ms since 1970.

    One clock for all replicas.
    """
    taken = f"pg_advisory_xact_lock({_LOCKS_OF_FLUXPOOL}, {lock})"
    # In this order: the time is that of the lock.
    statement = f"SELECT {taken}, extract(epoch FROM clock_timestamp())"  # noqa: S608 - two numbers
    return int(connection.exec_driver_sql(statement).one()[1] * 1000)


def server_version(connection: Connection) -> int:
    """The server's version, as 150018 for 15.18."""
    return int(connection.execute(text("SHOW server_version_num")).scalar_one())


def shown(url: str) -> str:
    """The address without its password, and without parameters, which may have one."""
    return make_url(url).set(query={}).render_as_string()


def _engine(
    url: str, name: str, *, session: tuple[str, ...], connections: int, statement_ms: int = _STATEMENT_MILLISECONDS
) -> Engine:
    address: URL = make_url(url).set(drivername="postgresql+psycopg")
    defaults = {
        "connect_timeout": str(CONNECT_SECONDS),
        "application_name": f"fluxpool-gateway-{name}",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": str(_UNANSWERED_MILLISECONDS),
    }
    engine = create_engine(
        address.update_query_dict({name: value for name, value in defaults.items() if name not in address.query}),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        # Through a proxy that pools sessions a prepared statement may belong to another session.
        connect_args={"prepare_threshold": None},
    )

    @event.listens_for(engine, "connect")
    def _settings(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for setting in (*_SESSION, f"statement_timeout={statement_ms}", *session):
            cursor.execute(f"SET {setting}")
        cursor.close()
        connection.commit()

    cut_when_silent(engine, seconds=_SILENCE_SECONDS if statement_ms else _PROJECTOR_SILENCE_SECONDS)
    return engine
