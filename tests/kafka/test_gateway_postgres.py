"""The task store on a real PostgreSQL server, without Kafka."""

import asyncio
import json
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fluxpool_contract.messages.feedback import Preference
from fluxpool_gateway.feedback.reads import (
    find_keys_of_task,
    read_compared,
    read_comparisons,
    read_ranks,
    read_ratings,
    read_scored,
)
from fluxpool_gateway.feedback.records import FeedbackSeen, read_feedback
from fluxpool_gateway.identity.bootstrap import prepare_secret
from fluxpool_gateway.identity.key_store import KeysError
from fluxpool_gateway.presets.evidence import read_evidence
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.database import DatabaseUnusableError, open_writer
from fluxpool_gateway.store.database_faults import DamagedStoreError
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.postgres.connection import NotLeaderError, open_projector
from fluxpool_gateway.store.postgres.reads import PostgresReads
from fluxpool_gateway.store.postgres.rebuild import empty_store
from fluxpool_gateway.store.postgres.start import prepare_database
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.tables import comparisons, metadata, ratings, tasks, usage_hours
from fluxpool_gateway.store.task_list import ChangePlace, ListCursor, ListFilter, ListOrder
from fluxpool_gateway.store.task_state import (
    Change,
    DeletionSeen,
    ProgressSeen,
    ResultSeen,
    TaskKey,
    TaskSeen,
    TaskStatus,
)
from fluxpool_gateway.store.task_store import Heartbeat, LogPosition, QuarantinedRecord, TaskStoreWriter
from kit.stores.postgres import PASSWORD, PostgresServer
from kit.waiting import wait_until_blocking

TOPIC = "tasks"
BEAT = Heartbeat(pid=1, beat_at_ms=5, caught_up_at_ms=5, lag_records=0)


def seen(
    request_id: str, *, at_ms: int = 1, tenant: str = "default", group_id: str | None = None, body: str = "{}"
) -> TaskSeen:
    return TaskSeen(
        request_id=request_id, body=body, priority="standard", tenant=tenant, created_at_ms=at_ms, group_id=group_id
    )


def moving(request_id: str, *, step: int = 1, tenant: str = "default") -> ProgressSeen:
    return ProgressSeen(
        request_id=request_id,
        tenant=tenant,
        status=TaskStatus.RUNNING,
        at_ms=1,
        started=False,
        step=step,
        total_steps=9,
    )


def ended(request_id: str, status: TaskStatus = TaskStatus.SUCCEEDED, *, tenant: str = "default") -> ResultSeen:
    return ResultSeen(request_id=request_id, status=status, body="{}", completed_at_ms=2, tenant=tenant)


def said(rating_id: str, request_id: str, what: int | Preference | None, *, tenant: str) -> FeedbackSeen:
    """A score, a comparison with another task, or nothing any more."""
    common = {"rating_id": rating_id, "created_at": "2026-11-30T10:00:00Z", "rater_hash": "ann"}
    origin = {"prompt": "a fox", "model": "flux", "preset": "draft", "steps": 8}
    value: dict[str, Any] = {**common, "request_id": request_id, "score": what, "origin": origin}
    if isinstance(what, Preference):
        other = {"request_id": "other", "origin": {"preset": "best"}}
        value = {**common, "a": {"request_id": request_id, "origin": origin}, "b": other, "preferred": what}
    return read_feedback(None if what is None else json.dumps(value).encode(), key=rating_id, tenant=tenant, at_ms=1)


def apply(
    store: TaskStoreWriter, changes: Sequence[Change | FeedbackSeen], *, start: int = 0
) -> list[QuarantinedRecord]:
    placed = [((TOPIC, 0, offset), change) for offset, change in enumerate(changes, start)]
    return store.apply(placed, {(TOPIC, 0): LogPosition(start + len(changes), "id")}, now_ms=7)


def rows(engine: Engine) -> list[Any]:
    """Every row of the tasks, but for the number of its last change, which tells the time."""
    columns = [column for column in tasks.columns if column.name != "change_number"]
    with engine.begin() as connection:
        return sorted(tuple(row) for row in connection.execute(select(*columns)))


def others(engine: Engine) -> list[Any]:
    """Every row of usage and of feedback."""
    with engine.begin() as connection:
        return [sorted(map(str, connection.execute(select(table)))) for table in (usage_hours, ratings, comparisons)]


# Start


def test_the_schema_is_that_of_the_tables(url: str, postgres: PostgresServer) -> None:
    engine = open_projector(url)
    found = postgres.execute(
        sql.SQL("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'task' ORDER BY 1"),
        database=url.rpartition("/")[2],
    )
    migrated = {name: definition.replace("task_by_tenant_pkey", "task_pkey") for name, definition in found}
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA declared"))
        connection.execute(text("SET LOCAL search_path TO declared"))
        metadata.create_all(connection)
        query = text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'declared' AND tablename = 'task'")
        declared = {row.indexname: row.indexdef.replace("declared.", "public.") for row in connection.execute(query)}
        columns = text(
            "SELECT table_schema, table_name, column_name, data_type, collation_name, is_nullable"
            " FROM information_schema.columns WHERE table_schema = :schema AND table_name IN :names"
        )
        names = tuple(metadata.tables)
        both = [
            sorted(
                tuple(row)[1:]
                for row in connection.execute(
                    text(str(columns).replace("IN :names", "= ANY(:names)")), {"schema": schema, "names": list(names)}
                )
            )
            for schema in ("declared", "public")
        ]
    engine.dispose()
    assert sorted(migrated.values()) == sorted(declared.values())
    assert both[0] == both[1]


def test_replicas_that_start_at_once_prepare_it_once(postgres: PostgresServer) -> None:
    address = postgres.database()
    failures: list[Exception] = []
    secrets: set[bytes] = set()

    def start() -> None:
        try:
            prepare_database(address)
            secrets.add(prepare_secret(address, bootstrap_key_file=None, now_ms=1))
        except (DatabaseUnusableError, KeysError, SQLAlchemyError) as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(secrets) == 1


@pytest.mark.parametrize(
    ("database", "more", "remedy"),
    [
        ("postgres", {"password": "wrong"}, "correct its user and password"),
        ("nowhere", {}, "create the database"),
        ("postgres", {"user": "stranger"}, "correct its user and password"),
    ],
)
def test_an_address_that_is_refused_is_named_with_the_remedy(
    postgres: PostgresServer, database: str, more: dict[str, str], remedy: str
) -> None:
    with pytest.raises(DatabaseUnusableError, match=r"^database_url: ") as refused:
        prepare_database(postgres.url(database, **more))
    assert remedy in str(refused.value)
    assert "wrong" not in str(refused.value)
    assert "for tests" not in str(refused.value)


@pytest.mark.parametrize(
    ("parameters", "remedy"), [("nonsense=1", "correct its parameters"), ("password=guessed", "correct its user")]
)
def test_parameters_that_are_wrong_are_told_and_not_shown(
    postgres: PostgresServer, parameters: str, remedy: str
) -> None:
    address = postgres.url().replace(f":{PASSWORD.replace(' ', '%20')}@", "@")
    with pytest.raises(DatabaseUnusableError, match=remedy) as refused:
        prepare_database(f"{address}?{parameters}")
    assert "guessed" not in str(refused.value)


def test_of_several_hosts_the_one_that_answers_is_used(postgres: PostgresServer) -> None:
    address = postgres.url().replace(f"@127.0.0.1:{postgres.port}/", f"@127.0.0.1:1,127.0.0.1:{postgres.port}/")
    settings = GatewaySettings.model_validate(
        {
            "kafka": {"bootstrap_servers": ["localhost:9092"]},
            "storage": {"url": "file:///images"},
            "database_url": f"{address}?target_session_attrs=read-write",
        }
    )
    assert settings.database_url is not None
    engine = open_projector(settings.database_url.get_secret_value())
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_an_address_without_a_server_is_named_with_the_remedy() -> None:
    with pytest.raises(DatabaseUnusableError, match=r"^database_url: .*check its host and port"):
        prepare_database("postgresql://fluxpool@127.0.0.1:1/x")


def test_a_schema_of_a_newer_release_is_refused(url: str, postgres: PostgresServer) -> None:
    database = url.rpartition("/")[2]
    postgres.execute(sql.SQL("UPDATE alembic_version SET version_num = '9999'"), database=database)
    with pytest.raises(DatabaseUnusableError, match=r"database_url: .*newer release"):
        prepare_database(url)


# Writing and reading

_IDS = st.sampled_from(["a", "B", "b", "_", "-", "Z", "z"])
_NAMES = st.sampled_from(["a", "B", "b", "Z", "z"])
_TENANTS = st.sampled_from(["default", "acme"])
_CHANGES = st.one_of(
    st.builds(seen, _IDS, at_ms=st.integers(0, 5), tenant=_TENANTS, group_id=st.sampled_from([None, "g"])),
    st.builds(moving, _IDS, step=st.integers(1, 9), tenant=_TENANTS),
    st.builds(ended, _IDS, st.sampled_from([TaskStatus.SUCCEEDED, TaskStatus.FAILED]), tenant=_TENANTS),
    st.builds(DeletionSeen, request_id=_IDS, tenant=_TENANTS),
    st.builds(said, st.sampled_from(["x", "y"]), _NAMES, st.sampled_from([None, 1, 5]), tenant=_TENANTS),
    st.builds(said, st.sampled_from(["x", "z"]), _NAMES, st.sampled_from(list(Preference)), tenant=_TENANTS),
)


async def _observed(store: TaskStoreReader) -> list[Any]:
    """Everything that a client can see, of a store."""
    found: list[Any] = []
    for tenant in ("default", "acme"):
        for wanted in (
            ListFilter(tenant=tenant),
            ListFilter(tenant=tenant, group_id="g"),
            ListFilter(tenant=tenant, statuses=frozenset({TaskStatus.QUEUED, TaskStatus.RUNNING})),
            ListFilter(tenant=tenant, statuses=frozenset({TaskStatus.FAILED}), from_ms=1, before_ms=4),
        ):
            for order in ListOrder:
                cursor: ListCursor | None = None
                while True:
                    page = await store.list(wanted, order=order, after=cursor, limit=2)
                    found.append((page.tasks, page.next))
                    cursor = page.next
                    if cursor is None:
                        break
        found.append(await store.count_group(tenant=tenant, group_id="g"))
        count, known = store.count_unfinished(tenant, known=["a", "b", "nothing"], most=3)
        found.append((count, sorted(known)))
        place = await store.place(tenant)
        changes = await store.changes(tenant, after=ChangePlace(place.first, place.first), limit=50)
        found.append([state for _, state in changes.tasks])
        snapshot, _ = await store.snapshot(ListFilter(tenant=tenant), limit=3)
        found.append(snapshot.tasks)
    found.append(sorted((await store.versions(["a", "B", "b"])).items()))
    found.append(sorted(await store.latest_changes(["default", "acme", "nobody"])))
    found.append(await store.find("a", tenant=None))
    found.append(await store.positions())
    found.append((await store.quarantine()).count)
    for tenant in ("default", "acme"):
        found.append(sorted(map(str, await store.read(partial(read_scored, tenant=tenant)))))
        found.append(sorted(map(str, await store.read(partial(read_compared, tenant=tenant)))))
        found.append(sorted((await store.read(partial(read_ranks, tenant=tenant))).items()))
        found.append(await store.read(partial(read_ratings, tenant=tenant, after="", limit=9)))
        found.append(await store.read(partial(read_comparisons, tenant=tenant, after="", limit=9)))
        found.append(await store.read(partial(find_keys_of_task, request_id="a", tenant=tenant)))
    found.append(await store.read(partial(read_evidence, names=["draft", "best"])))
    return found


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(batches=st.lists(st.lists(_CHANGES, max_size=12), max_size=4))
def test_it_holds_and_shows_what_a_sqlite_file_does(
    tmp_path_factory: pytest.TempPathFactory, url: str, batches: list[list[Change | FeedbackSeen]]
) -> None:
    file = tmp_path_factory.mktemp("store") / "tasks.sqlite"
    sqlite_engine, engine = open_writer(file), open_projector(url)
    migrate(sqlite_engine, file)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE task, projected_offset, usage_hour, rating, comparison"))
    first, second = TaskStoreReader(file), TaskStoreReader(PostgresReads(url))
    try:
        start = 0
        for batch in batches:
            for opened in (sqlite_engine, engine):
                assert apply(TaskStoreWriter(opened), batch, start=start) == []
            start += len(batch)
        assert rows(engine) == rows(sqlite_engine)
        assert others(engine) == others(sqlite_engine)
        assert asyncio.run(_observed(second)) == asyncio.run(_observed(first))
    finally:
        first.close()
        second.close()
        sqlite_engine.dispose()
        engine.dispose()


@pytest.mark.parametrize(
    "bad",
    [
        moving("bad", step=10**20),
        moving("bad", step=2**40),
        seen("\ud800"),
        seen("bad", body="\udcff"),
        seen("bad", body="a\0b"),
        seen("bad", tenant="t" * 64),
        seen("bad", body=object()),  # type: ignore[arg-type]  # the driver refuses it
    ],
)
async def test_only_the_record_that_cannot_be_applied_is_skipped(
    writer: TaskStoreWriter, reader: TaskStoreReader, bad: Change
) -> None:
    good = [seen(f"t{number}") for number in range(20)]
    assert [item.offset for item in apply(writer, [*good[:7], bad, *good[7:]])] == [7]
    page = await reader.list(ListFilter(tenant="default"), order=ListOrder.ASC, limit=50)
    assert sorted(task.request_id for task in page.tasks) == sorted(task.request_id for task in good)
    assert await reader.positions() == {(TOPIC, 0): LogPosition(21, "id")}
    assert (await reader.quarantine()).count == 1
    # Read again, it counts once.
    apply(writer, [*good[:7], bad, *good[7:]])
    assert (await reader.quarantine()).count == 1


async def test_rows_whose_record_kafka_deleted_are_deleted(writer: TaskStoreWriter, reader: TaskStoreReader) -> None:
    apply(writer, [seen(f"t{number}") for number in range(9)])
    after: TaskKey | None = TaskKey("", "")
    deleted = 0
    while after is not None:
        after, some = writer.delete_expired({(TOPIC, 0): 5}, after=after, rows=2)
        deleted += some
    assert deleted == 5
    page = await reader.list(ListFilter(tenant="default"), order=ListOrder.ASC, limit=50)
    assert [task.request_id for task in page.tasks] == ["t5", "t6", "t7", "t8"]


async def test_a_read_of_one_moment_leaves_no_old_moment_to_the_next(
    postgres: PostgresServer, url: str, writer: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    everything = ListFilter(tenant="default")
    database = sql.Literal(url.rpartition("/")[2])
    left_open = sql.SQL(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = {} AND state LIKE 'idle in transaction%'"
    )
    for number in range(10):
        apply(writer, [seen(f"t{number}")], start=number)
        assert len((await reader.list(everything, order=ListOrder.ASC, limit=2)).tasks) == min(number + 1, 2)
        page, _ = await reader.snapshot(everything, limit=50)
        assert len(page.tasks) == number + 1
        assert reader.count_unfinished("default", known=["t0"], most=50) == (number + 1, ["t0"])
        assert postgres.execute(left_open.format(database)) == [(0,)]


async def test_reads_recover_when_the_server_was_away(
    postgres: PostgresServer, url: str, writer: TaskStoreWriter
) -> None:
    apply(writer, [seen("a")])
    reader = TaskStoreReader(PostgresReads(url))
    try:
        assert await reader.find("a", tenant="default") is not None
        postgres.end_sessions(url)
        # As after a restart: the first read finds its connection closed, and takes another one.
        assert await reader.find("a", tenant="default") is not None
    finally:
        reader.close()


async def test_a_store_that_is_away_is_told_at_once_the_second_time() -> None:
    reader = TaskStoreReader(PostgresReads("postgresql://fluxpool@127.0.0.1:1/x"))
    try:
        with pytest.raises(StoreUnavailableError, match="see that it runs"):
            await reader.positions()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await reader.positions()
    finally:
        reader.close()


# One projector


def test_only_one_process_writes_and_another_takes_over(postgres: PostgresServer, url: str) -> None:
    one, two = open_projector(url), open_projector(url)
    try:
        apply(TaskStoreWriter(one), [seen("a")])
        with pytest.raises(NotLeaderError):
            TaskStoreWriter(two).positions()
        postgres.end_sessions(url)
        wait_until_blocking(lambda: _leads(two), deadline_seconds=30, what="the lock of a session that ended")
        apply(TaskStoreWriter(two), [seen("b")], start=1)
        # The first one's connection is gone, and with it the lock: it writes nothing any more.
        with pytest.raises((DBAPIError, NotLeaderError)):
            apply(TaskStoreWriter(one), [seen("c")], start=2)
        with pytest.raises(NotLeaderError):
            apply(TaskStoreWriter(one), [seen("c")], start=2)
        assert [row[0] for row in rows(two)] == ["a", "b"]
    finally:
        one.dispose()
        two.dispose()


def _leads(engine: Engine) -> bool:
    try:
        TaskStoreWriter(engine).positions()
    except NotLeaderError:
        return False
    return True


async def test_an_emptied_store_is_written_by_no_projector_that_knew_it_before(
    url: str, writer: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    writer.positions()
    apply(writer, [seen("a")])
    writer.beat(BEAT)
    empty_store(url)
    for write in (lambda: apply(writer, [seen("b")], start=1), lambda: writer.beat(BEAT)):
        with pytest.raises(DamagedStoreError, match="emptied"):
            write()
    assert await reader.positions() == {}
    heartbeat = await reader.heartbeat()
    assert heartbeat is not None
    assert heartbeat.caught_up_at_ms is None
    assert heartbeat.rebuilt_because
    assert writer.positions() == {}
    apply(writer, [seen("b")])
    page = await reader.list(ListFilter(tenant="default"), order=ListOrder.ASC, limit=50)
    assert [task.request_id for task in page.tasks] == ["b"]


# Reservations and limits


# Groups


async def test_a_group_tells_the_waiting_task_that_was_accepted_last(
    writer: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    apply(writer, [seen(f"r-{number}", at_ms=number, group_id="g") for number in range(1, 5)])
    apply(writer, [moving("r-4"), ended("r-3")], start=4)
    counts = await reader.count_group(tenant="default", group_id="g")
    assert counts.counts == {TaskStatus.QUEUED: 2, TaskStatus.RUNNING: 1, TaskStatus.SUCCEEDED: 1}
    assert counts.last_waiting is not None
    assert (counts.last_waiting.request_id, counts.last_waiting.place) == ("r-2", (TOPIC, 0, 1))
    apply(writer, [ended("r-1"), ended("r-2")], start=6)
    assert (await reader.count_group(tenant="default", group_id="g")).last_waiting is None
