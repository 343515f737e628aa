"""A real PostgreSQL server for tests: Debian's package, a data folder of its own, on a port of the kit.

`hack/postgres/provide` finds or installs the programs. The server refuses to run as root, so root's tests run it as
another user.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from kit.brokers.kafka import unique_name
from kit.ports import own_port
from kit.waiting import PATIENCE, wait_until_blocking

_PROVIDE: Final = Path(__file__).parents[3] / "hack" / "postgres" / "provide"
_START_SECONDS: Final = 60.0
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "max_connections": "200",
}
USER: Final = "fluxpool"
PASSWORD: Final = "for tests"


@dataclass(slots=True)
class PostgresServer:
    """A server; `database` makes a new database on it."""

    programs: Path
    data: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None
    _extra: dict[str, Any] = field(default_factory=dict)

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        """The address of a database, as the setting takes it."""
        return f"postgresql://{user}:{password.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The address of a new, empty database, which sorts as a language does: the store must not depend on that."""
        name = unique_name("store")
        sorted_as = sql.SQL("TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
        self.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sorted_as))
        return self.url(name)

    def execute(self, statement: sql.SQL | sql.Composed, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement; its rows, if it has any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def end_sessions(self, url: str) -> None:
        """End every session of the database at this address, as a restart of the server does."""
        query = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}")
        self.execute(query.format(sql.Literal(url.rpartition("/")[2])))

    def start(self) -> None:
        """Start the server on its data and return once it answers."""
        settings = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": self.port}.items()]
        with (self.data.parent / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._extra,
            )
        wait_until_blocking(self._answers, deadline_seconds=_START_SECONDS, what="PostgreSQL's first answer")

    def stop(self, *, with_signal: signal.Signals = signal.SIGQUIT) -> None:
        """Stop the server; by SIGQUIT as if it had crashed, by SIGINT in order, connections closed in either case."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(with_signal)
            self._process.wait(_START_SECONDS * PATIENCE)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.data.parent / "log").read_text()
        try:
            self.execute(sql.SQL("SELECT 1"))
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server for a block.

    Skips the test where there is none and it cannot be installed; with TEST_REQUIRE_POSTGRES=1 the test fails instead.
    """
    provided = subprocess.run([_PROVIDE], capture_output=True, text=True, check=False)
    if provided.returncode != 0:
        if os.environ.get("TEST_REQUIRE_POSTGRES") == "1":
            pytest.fail(f"TEST_REQUIRE_POSTGRES=1, but {provided.stderr}")
        pytest.skip(provided.stderr)
    folder = Path(tempfile.mkdtemp(prefix="fluxpool-postgres-"))
    extra: dict[str, Any] = {}
    if os.geteuid() == 0:
        owner = _unprivileged()
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        extra = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": ()}
    programs = Path(provided.stdout.strip())
    password_file = folder / "password"
    password_file.write_text(PASSWORD)
    password_file.chmod(0o644)
    initdb = [str(programs / "initdb"), f"--pgdata={folder / 'data'}", f"--username={USER}"]
    initdb += [f"--pwfile={password_file}"]
    initdb += ["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **extra)
    server = PostgresServer(programs, folder / "data", own_port(), _extra={**extra, "cwd": folder})
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> pwd.struct_passwd:
    """The user of Debian's package, or one that every system has."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
