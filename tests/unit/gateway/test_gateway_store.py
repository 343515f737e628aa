"""The task store over a real SQLite file: bad records do not affect others; damage is reported and repaired."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from fluxpool_contract.tenants import NO_TENANT
from fluxpool_gateway.store.damage import move_aside, remove_orphans, report_damage, take_damage_report
from fluxpool_gateway.store.database import DatabaseUnusableError, identity_of, open_writer
from fluxpool_gateway.store.database_faults import DamagedStoreError, DatabaseFault, fault_of, is_record_fault
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.tables import metadata
from fluxpool_gateway.store.task_list import ChangePlace
from fluxpool_gateway.store.task_state import (
    Change,
    ProgressSeen,
    RecordRef,
    ResultSeen,
    TaskSeen,
    TaskState,
    TaskStatus,
)
from fluxpool_gateway.store.task_store import (
    MAX_QUARANTINED_RECORDS,
    Heartbeat,
    LogPosition,
    QuarantinedRecord,
    TaskStoreWriter,
)
from kit.stores.store_file import write_store

TOPIC = "tasks"
NOW_MS = 4_000_000_000_000
"""Later than the store is made."""


def seen(request_id: str, *, body: str = "{}", attempt: int = 1, tenant: str = "default") -> TaskSeen:
    return TaskSeen(
        request_id=request_id, body=body, priority="standard", tenant=tenant, created_at_ms=1, attempt=attempt
    )


def moving(request_id: str, *, total_steps: int | None, attempt: int = 1, tenant: str = "default") -> ProgressSeen:
    return ProgressSeen(
        request_id=request_id,
        tenant=tenant,
        status=TaskStatus.RUNNING,
        at_ms=1,
        started=False,
        step=1,
        total_steps=total_steps,
        attempt=attempt,
    )


def placed(changes: Sequence[Change]) -> list[tuple[RecordRef, Change]]:
    return [((TOPIC, 0, offset), change) for offset, change in enumerate(changes)]


def apply(store: TaskStoreWriter, changes: Sequence[Change]) -> list[QuarantinedRecord]:
    return store.apply(placed(changes), {(TOPIC, 0): LogPosition(len(changes), "id")}, now_ms=7)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (moving("bad", total_steps=10**20), "OverflowError: Python int too large to convert to SQLite INTEGER"),
        (
            moving("bad", total_steps=1, attempt=2**63),
            "OverflowError: Python int too large to convert to SQLite INTEGER",
        ),
        (seen("\ud800"), r"UnicodeEncodeError: 'utf-8' codec can't encode character '\ud800' in position 0"),
        (
            seen("bad", body="\udcff"),
            r"UnicodeEncodeError: 'utf-8' codec can't encode character '\udcff' in position 0",
        ),
        (moving("bad", total_steps=b"\x1b[2J"), None),  # type: ignore[arg-type]  # SQLite takes any type
        (seen("bad", attempt="many"), "TypeError: '<' not supported"),  # type: ignore[arg-type]  # folding fails
        (seen("bad", body=object()), "Error binding parameter"),  # type: ignore[arg-type]  # the driver fails
    ],
)
async def test_only_the_record_that_cannot_be_applied_is_skipped(
    store: TaskStoreWriter, reader: TaskStoreReader, bad: Change, reason: str | None
) -> None:
    good = [seen(f"t{number}") for number in range(20)]
    refused = apply(store, [*good[:7], bad, *good[7:]])
    assert [item.offset for item in refused] == ([] if reason is None else [7])
    assert all(reason is not None and reason in item.reason for item in refused)
    assert all([await reader.find(f"t{number}", tenant="default") is not None for number in range(20)])
    assert store.positions() == {(TOPIC, 0): LogPosition(21, "id")}
    assert (await reader.quarantine()).count == len(refused)


async def test_the_place_of_a_change_does_not_tell_how_much_other_tenants_change(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    for now_ms in (NOW_MS, NOW_MS + 1):
        others = [seen(f"{now_ms}-{number}", tenant="busy") for number in range(50)]
        mine = [seen(f"mine-{now_ms}-{number}") for number in range(2)]
        store.apply(placed([*others[:25], mine[0], *others[25:], mine[1]]), {}, now_ms=now_ms)
    store.apply(placed([seen("last", tenant="busy")]), {}, now_ms=NOW_MS + 2)
    first = (await reader.place("nobody")).first
    found = await reader.changes("default", after=ChangePlace(first, first), limit=10)
    numbers = [place.number for place, _ in found.tasks]
    assert numbers == [NOW_MS * 1000, NOW_MS * 1000 + 1, NOW_MS * 1000 + 1000, NOW_MS * 1000 + 1001]
    assert found.newest == ChangePlace(first, numbers[-1])


async def test_tasks_of_two_tenants_with_one_id_are_two(store: TaskStoreWriter, reader: TaskStoreReader) -> None:
    apply(store, [seen("r"), moving("r", total_steps=28, tenant="acme"), seen("r", body='"acme"', tenant="acme")])
    apply(store, [moving("r", total_steps=9, tenant="third")])
    found = [await reader.find("r", tenant=tenant) for tenant in ("default", "acme", "third", "fourth")]
    assert [task and (task.body, task.total_steps) for task in found] == [("{}", None), ('"acme"', 28), (None, 9), None]


@pytest.mark.usefixtures("engine")
def test_a_migrated_store_has_the_tables_of_a_new_one(file: Path, tmp_path: Path) -> None:
    other = open_writer(tmp_path / "other.sqlite")
    metadata.create_all(other)
    other.dispose()
    schemas = []
    for path in (file, tmp_path / "other.sqlite"):
        with closing(sqlite3.connect(path)) as connection:
            columns = [
                connection.execute('SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (table,)).fetchall()
                for table in ("task", "usage_hour")
            ]
            indexes = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql NOT NULL")
            schemas.append((columns, sorted((name, " ".join(sql.split())) for name, sql in indexes)))
    assert schemas[0] == schemas[1]


async def test_all_records_of_a_batch_can_be_bad(store: TaskStoreWriter, reader: TaskStoreReader) -> None:
    assert len(apply(store, [moving("bad", total_steps=10**20)] * 50)) == 50
    assert (await reader.quarantine()).count == 50
    assert await reader.find("bad", tenant="default") is None


async def test_a_bad_record_does_not_affect_other_records_of_its_task(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    apply(store, [seen("one"), moving("one", total_steps=10**20), moving("one", total_steps=28)])
    found = await reader.find("one", tenant="default")
    assert found is not None
    assert (found.status, found.total_steps) == (TaskStatus.RUNNING, 28)


async def test_a_record_that_was_not_readable_is_kept_with_its_place_reason_and_time(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    record = QuarantinedRecord(topic=TOPIC, partition=3, offset=9, reason="a\x1b[2J\nb" + "x" * 1000, at_ms=7)
    store.apply([], {(TOPIC, 3): LogPosition(10)}, passed_over=[record], now_ms=7)
    latest = (await reader.quarantine()).latest
    assert latest is not None
    assert (latest.topic, latest.partition, latest.offset, latest.at_ms) == (TOPIC, 3, 9, 7)
    assert latest.reason.startswith(r"a\x1b[2J\nbxxx")
    assert len(latest.reason) == 300


async def test_the_same_record_counts_once_however_often_it_is_read(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    for _ in range(3):
        apply(store, [moving("bad", total_steps=10**20)])
    assert (await reader.quarantine()).count == 1


async def test_the_rows_of_skipped_records_are_bounded_and_their_count_is_not(
    file: Path, store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    records = [
        QuarantinedRecord(topic=TOPIC, partition=0, offset=offset, reason="no", at_ms=7)
        for offset in range(MAX_QUARANTINED_RECORDS + 5)
    ]
    store.apply([], {}, passed_over=records[:10], now_ms=7)
    store.apply([], {}, passed_over=records[10:], now_ms=7)
    with closing(sqlite3.connect(file)) as connection:
        kept = connection.execute('SELECT count(*), min("offset") FROM quarantined_record').fetchone()
    assert kept == (MAX_QUARANTINED_RECORDS, 5)
    assert (await reader.quarantine()).count == MAX_QUARANTINED_RECORDS + 5


async def test_an_error_of_the_database_is_not_blamed_on_a_record_and_saves_nothing(
    file: Path, store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON projected_offset BEGIN SELECT no_such_function(); END")
        with pytest.raises(DatabaseError):
            apply(store, [seen("one")])
        connection.execute("DROP TRIGGER full")
    assert await reader.find("one", tenant="default") is None
    assert (await reader.quarantine()).count == 0


def sqlite_error(kind: type[sqlite3.Error], code: int | None) -> Exception:
    raised = kind("text")
    if code is not None:
        raised.sqlite_errorcode = code
    return DatabaseError("statement", {}, raised)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT), DatabaseFault.DAMAGED),
        (sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT_INDEX), DatabaseFault.DAMAGED),
        (sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_NOTADB), DatabaseFault.DAMAGED),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_IOERR_SHORT_READ), DatabaseFault.DAMAGED),
        (sqlite_error(sqlite3.OperationalError, None), DatabaseFault.DAMAGED),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_ERROR), DatabaseFault.NO_SCHEMA),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_FULL), DatabaseFault.TRANSIENT),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_BUSY), DatabaseFault.TRANSIENT),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_IOERR_WRITE), DatabaseFault.TRANSIENT),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_CANTOPEN), DatabaseFault.INACCESSIBLE),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_READONLY_DBMOVED), DatabaseFault.INACCESSIBLE),
        (DamagedStoreError("text"), DatabaseFault.DAMAGED),
    ],
)
def test_errors_of_the_database_are_classified_and_not_blamed_on_records(
    error: Exception, fault: DatabaseFault
) -> None:
    assert fault_of(error) is fault
    assert not is_record_fault(error)


async def test_a_recreated_topic_is_read_from_its_beginning_and_the_tasks_are_kept(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    apply(store, [seen("old")])
    store.apply([], {("results", 0): LogPosition(4, "other")}, now_ms=7)
    store.forget_positions(TOPIC)
    assert store.positions() == {("results", 0): LogPosition(4, "other")}
    assert await reader.find("old", tenant="default") is not None


async def test_a_store_of_the_first_release_keeps_its_tasks_and_is_read_again(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);"
            "INSERT INTO alembic_version VALUES ('0001');"
            "CREATE TABLE task (request_id VARCHAR(128) NOT NULL PRIMARY KEY, version BIGINT NOT NULL,"
            " status VARCHAR(16) NOT NULL, attempts INTEGER NOT NULL, step INTEGER, total_steps INTEGER, body TEXT,"
            " priority VARCHAR(16), tenant VARCHAR(63), created_at_ms BIGINT, started_at_ms BIGINT,"
            " completed_at_ms BIGINT, result TEXT) WITHOUT ROWID;"
            "INSERT INTO task (request_id, version, status, attempts) VALUES ('old', 1, 'queued', 1);"
            "INSERT INTO task VALUES ('known', 101100910000, 'succeeded', 2, NULL, NULL, '{}', 'vip', 'acme', 1, 2, 3,"
            " '{\"a\":1}');"
            "CREATE TABLE projected_offset (topic VARCHAR(249) NOT NULL, partition INTEGER NOT NULL,"
            " next_offset BIGINT NOT NULL, PRIMARY KEY (topic, partition));"
            "INSERT INTO projected_offset VALUES ('tasks', 0, 20);"
            "CREATE TABLE projector_heartbeat (id INTEGER NOT NULL PRIMARY KEY, pid INTEGER NOT NULL,"
            " beat_at_ms BIGINT NOT NULL, caught_up_at_ms BIGINT, lag_records BIGINT);"
            "INSERT INTO projector_heartbeat VALUES (1, 7, 8, 9, 10);"
        )
    engine = open_writer(file)
    migrate(engine, file)
    store, reader = TaskStoreWriter(engine), TaskStoreReader(file)
    assert store.positions() == {}
    assert await reader.find("old", tenant=NO_TENANT) is not None
    assert await reader.find("known", tenant="acme") == TaskState(
        request_id="known",
        tenant="acme",
        version=101_100_910_000,
        status=TaskStatus.SUCCEEDED,
        attempts=2,
        body="{}",
        priority="vip",
        created_at_ms=1,
        started_at_ms=2,
        completed_at_ms=3,
        result='{"a":1}',
    )
    assert await reader.heartbeat() == Heartbeat(pid=7, beat_at_ms=8, caught_up_at_ms=None, lag_records=10)
    assert apply(store, [seen("new")]) == []
    reader.close()
    engine.dispose()


def test_a_store_of_a_newer_release_is_refused_with_the_remedy(file: Path, engine: Engine) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnusableError, match="run that release, or delete the file"):
        migrate(engine, file)


def test_a_store_with_an_unknown_version_is_damaged(file: Path, engine: Engine) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'zzz'")
    with pytest.raises(DamagedStoreError):
        migrate(engine, file)


def damage_pages(file: Path) -> None:
    """Overwrite all but the first two pages, like a failing disk."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as raw:
        size = raw.seek(0, 2)
        raw.seek(2 * 4096)
        raw.write(b"\xa5" * (size - 2 * 4096))


async def test_a_reader_reports_damage_to_its_client_and_to_the_projector(
    file: Path, engine: Engine, store: TaskStoreWriter
) -> None:
    apply(store, [seen(f"t{number}", body="x" * 4000) for number in range(20)])
    engine.dispose()
    damage_pages(file)
    reader = TaskStoreReader(file)
    with pytest.raises(StoreUnavailableError, match=r"is being rebuilt from Kafka: .*tasks\.sqlite is damaged"):
        await reader.find("t1", tenant="default")
    assert take_damage_report(file)
    assert not take_damage_report(file)
    reader.close()


def test_damage_of_a_file_that_was_replaced_is_ignored(file: Path, engine: Engine) -> None:
    identity = identity_of(file)
    assert identity is not None
    report_damage(file, identity)
    engine.dispose()
    move_aside(file)
    file.write_bytes(b"")
    assert not take_damage_report(file)


async def test_a_reader_opens_the_new_file_when_the_store_is_rebuilt(
    file: Path, engine: Engine, store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    apply(store, [seen("old")])
    assert await reader.find("old", tenant="default") is not None
    engine.dispose()
    aside = move_aside(file)
    assert aside is not None
    with pytest.raises(StoreUnavailableError, match="does not exist"):
        await reader.find("old", tenant="default")
    again = open_writer(file)
    with pytest.raises(StoreUnavailableError, match=r"being built|does not exist"):
        await reader.find("old", tenant="default")
    assert not take_damage_report(file)
    migrate(again, file)
    assert await reader.find("old", tenant="default") is None
    again.dispose()


def test_only_the_latest_damaged_file_is_kept(file: Path) -> None:
    (file.parent / (file.name + ".damaged-20200101T000000Z")).write_text("old")
    file.write_text("no database")
    file.with_name(file.name + "-wal").write_text("log")
    aside = move_aside(file)
    assert aside is not None
    assert aside.read_text() == "no database"
    assert sorted(path.name for path in file.parent.iterdir()) == [aside.name, aside.name + "-wal"]


def test_the_log_of_a_deleted_file_is_not_read_into_the_next_one(file: Path) -> None:
    engine = open_writer(file)
    migrate(engine, file)
    apply(TaskStoreWriter(engine), [seen("old")])
    log = file.with_name(file.name + "-wal").read_bytes()
    engine.dispose()
    file.unlink()
    file.with_name(file.name + "-wal").write_bytes(log)
    remove_orphans(file)
    again = open_writer(file)
    migrate(again, file)
    assert TaskStoreWriter(again).positions() == {}
    again.dispose()


def test_an_invalid_row_is_damage_and_not_blamed_on_the_next_record(file: Path, store: TaskStoreWriter) -> None:
    apply(store, [seen("one")])
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE task SET status = 'garbage'")
    with pytest.raises(DamagedStoreError):
        apply(store, [moving("one", total_steps=28)])


_NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30)
_IDS = st.sampled_from(["a", "b"]) | st.text(max_size=4) | st.text(st.characters(categories=["Cs"]), max_size=2)
_TENANTS = st.sampled_from(["default", "acme"])
_CHANGES = st.one_of(
    st.builds(
        TaskSeen,
        request_id=_IDS,
        body=st.text(max_size=5),
        priority=st.just("vip"),
        tenant=_TENANTS,
        created_at_ms=_NUMBERS,
        epoch=_NUMBERS,
        attempt=_NUMBERS,
    ),
    st.builds(
        ProgressSeen,
        request_id=_IDS,
        tenant=_TENANTS,
        status=st.sampled_from([TaskStatus.QUEUED, TaskStatus.RUNNING]),
        at_ms=_NUMBERS,
        started=st.booleans(),
        attempt=_NUMBERS,
        step=st.none() | _NUMBERS,
        total_steps=st.none() | _NUMBERS,
    ),
    st.builds(
        ResultSeen,
        request_id=_IDS,
        tenant=_TENANTS,
        status=st.sampled_from([status for status in TaskStatus if status.terminal]),
        body=st.text(max_size=5),
        completed_at_ms=_NUMBERS,
        epoch=_NUMBERS,
        attempt=_NUMBERS,
    ),
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_CHANGES, max_size=20), st.integers(1, 20))
def test_records_in_batches_and_one_by_one_make_the_same_store(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Change], size: int
) -> None:
    dumps = []
    for step in (1, size):
        file = tmp_path_factory.mktemp("store") / "tasks.sqlite"
        write_store(file, placed(changes), size=step)
        with closing(sqlite3.connect(file)) as connection:
            # All but when a task changed last: what happens to it in one batch is one change.
            tasks = [row[:-1] for row in connection.execute("SELECT * FROM task ORDER BY request_id, tenant")]
            passed_over = connection.execute('SELECT "offset" FROM quarantined_record ORDER BY 1').fetchall()
            usage = connection.execute("SELECT * FROM usage_hour ORDER BY tenant, hour, outcome").fetchall()
        dumps.append((tasks, passed_over, usage))
    assert dumps[0] == dumps[1]
