"""What people say of images, in the store: the last word of each counts, and every rebuild has the same rows."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.feedback import Rating
from fluxpool_contract.tenants import NO_TENANT, TenantTrust, prove_tenant
from fluxpool_gateway.feedback.records import PROOF_PREFIX, FeedbackSeen
from fluxpool_gateway.projection.projected_records import UnreadableRecordError, read_change
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.task_state import Change, DeletionSeen, RecordRef, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.store.task_store import TaskStoreWriter
from kit.stores.store_file import write_store

TOPICS = TopicNames()
FEEDBACK, RESULTS = TOPICS.feedback, TOPICS.results
SECRET = b"secret"
TABLES = ("rating", "comparison")
Rows = dict[str, list[tuple[Any, ...]]]


def rated(rating_id: str = "r-1", request_id: str = "one", **more: Any) -> bytes:
    said = {"rating_id": rating_id, "request_id": request_id, "created_at": "2026-11-30T10:00:00Z", "score": 4, **more}
    return json.dumps(said).encode()


def compared(rating_id: str = "c-1", a: str = "one", b: str = "two", preferred: str = "a", **more: Any) -> bytes:
    said = {"rating_id": rating_id, "a": {"request_id": a}, "b": {"request_id": b}, "preferred": preferred}
    return json.dumps({"created_at": "2026-11-30T10:00:00Z", **said, **more}).encode()


def seen(
    value: bytes | None, key: str | None = None, *, at_ms: int = 5, tenant: str = "", trust: TenantTrust | None = None
) -> FeedbackSeen:
    headers = [("fluxpool-tenant", tenant.encode())] if tenant else []
    if key is None:
        assert value is not None
        key = json.loads(value)["rating_id"]
    change = read_change(
        TOPICS, topic=FEEDBACK, key=key.encode(), value=value, headers=headers, timestamp_ms=at_ms,
        trust=trust or TenantTrust(foreign_topics=frozenset({FEEDBACK})),
    )  # fmt: skip
    assert isinstance(change, FeedbackSeen)
    return change


def deleted(request_id: str = "one", tenant: str = "default") -> DeletionSeen:
    return DeletionSeen(request_id=request_id, tenant=tenant)


def rows(file: Path) -> Rows:
    with closing(sqlite3.connect(file)) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY tenant, rating_id").fetchall()  # noqa: S608
            for table in TABLES
        }


def column(file: Path, name: str, table: str = "rating") -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute(f"SELECT {name} FROM {table} ORDER BY tenant, rating_id").fetchall()  # noqa: S608
        return [row[0] for row in found]


def apply(store: TaskStoreWriter, *changes: Change | FeedbackSeen, start: int = 0) -> None:
    placed: list[tuple[RecordRef, Change | FeedbackSeen]] = [
        ((FEEDBACK if isinstance(change, FeedbackSeen) else RESULTS, 0, start + offset), change)
        for offset, change in enumerate(changes)
    ]
    assert store.apply(placed, {}, now_ms=7) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_the_last_rating_of_a_key_counts(store: TaskStoreWriter, file: Path, at_once: bool) -> None:
    changes = [seen(rated(score=1)), seen(rated("r-2", score=2)), seen(rated(score=5))]
    if at_once:
        apply(store, *changes)
    else:
        for offset, change in enumerate(changes):
            apply(store, change, start=offset)
    assert column(file, "score") == [5, 2]
    assert column(file, "reward_quarters") == [4, 1]


def test_a_record_that_is_read_again_changes_nothing(store: TaskStoreWriter, file: Path) -> None:
    changes = [seen(rated(score=1)), seen(rated(score=5)), seen(compared())]
    apply(store, *changes)
    before = rows(file)
    apply(store, *changes)
    assert rows(file) == before


def test_what_is_taken_back_is_gone(store: TaskStoreWriter, file: Path) -> None:
    apply(store, seen(rated()), seen(compared()))
    apply(store, seen(None, "r-1"), seen(None, "c-1"), seen(None, "never"), start=2)
    assert rows(file) == {"rating": [], "comparison": []}
    apply(store, seen(rated(score=2)), start=5)
    assert column(file, "score") == [2]


def test_a_comparison_has_one_winner_whichever_image_is_named_first(store: TaskStoreWriter, file: Path) -> None:
    apply(store, seen(compared(a="two", b="one", preferred="a", shown_first="a")))
    columns = "a_request_id || ' ' || b_request_id || ' ' || preferred"
    assert column(file, columns, "comparison") == ["one two b"]
    assert json.loads(column(file, "body", "comparison")[0])["shown_first"] == "b"
    apply(store, seen(compared(a="one", b="two", preferred="a")), start=1)
    assert column(file, columns, "comparison") == ["one two a"]


def test_a_record_that_becomes_another_kind_leaves_nothing_of_the_first(store: TaskStoreWriter, file: Path) -> None:
    apply(store, seen(rated("x")))
    apply(store, seen(compared("x")), start=1)
    assert {table: len(found) for table, found in rows(file).items()} == {"rating": 0, "comparison": 1}


def test_how_the_images_were_made_is_kept_with_what_is_said(store: TaskStoreWriter, file: Path) -> None:
    origin = {"prompt": "a  fox\n", "model": "flux", "pool": "h200", "preset": "draft", "steps": 8}
    a, b = {"request_id": "one", "origin": origin}, {"request_id": "two", "origin": {"preset": "best", "steps": 28}}
    apply(
        store,
        seen(rated(origin=origin)),
        seen(rated("r-2", origin={"prompt": "a fox"})),
        seen(compared() [:-1] + b', "a": ' + json.dumps(b).encode() + b', "b": ' + json.dumps(a).encode() + b"}"),
    )  # fmt: skip
    assert column(file, "model || pool || preset || steps") == ["fluxh200draft8", None]
    assert len(set(column(file, "prompt_key"))) == 1
    assert column(file, "a_preset || a_steps || b_preset || b_steps", "comparison") == ["draft8best28"]


def test_tenants_are_apart(store: TaskStoreWriter, file: Path) -> None:
    apply(store, seen(rated(score=1)), seen(rated(score=5), tenant="acme"))
    assert column(file, "tenant || score") == ["acme5", "default1"]
    apply(store, seen(None, "r-1", tenant="acme"), start=2)
    assert column(file, "tenant || score") == ["default1"]
    apply(store, deleted("one", "acme"), start=3)
    assert column(file, "score") == [1]


def test_the_tenant_of_a_record_needs_the_proof_of_a_gateway() -> None:
    trust = TenantTrust(secret=SECRET)
    assert seen(rated(), tenant="acme", trust=trust).tenant == "default"

    def owner(proof: str) -> str:
        headers = [("fluxpool-tenant", b"acme"), ("fluxpool-tenant-proof", proof.encode())]
        change = read_change(
            TOPICS, topic=FEEDBACK, key=b"r-1", value=None, headers=headers, timestamp_ms=1, trust=trust
        )
        assert change is not None
        return change.tenant

    assert owner(prove_tenant(SECRET, tenant="acme", request_id=PROOF_PREFIX + "r-1")) == "acme"
    assert owner(prove_tenant(SECRET, tenant="acme", request_id="r-1")) == NO_TENANT


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, rated(), "key: must be the rating_id"),
        (b"", rated(), "key: must be the rating_id"),
        (b"r-2", rated(), "rating_id: is 'r-1', but the key is 'r-2'"),
        (b"r-1", b"{", "not JSON"),
        (b"r-1", b"[" * 100_000, "not JSON"),
        (b"r-1", b"[]", "object"),
        (b"r-1", rated(score=6), "score"),
        (b"r-1", rated(score=None), "give at least one of"),
        (b"r-1", rated(aspects={"fidelity": 0}), "fidelity"),
        (b"r-1", rated(artifacts=6), "artifacts"),
        (b"r-1", rated(comment="x" * 1001), "comment"),
        (b"r-1", rated(comment="\x00"), "NUL"),
        (b"r-1", rated(tags=["x"] * 17), "tags"),
        (b"r-1", rated(comment="x" * 1024 * 1024), "at most"),
        (b"c-1", compared(preferred="left"), "preferred"),
        (b"c-1", compared(b="one"), "another image"),
        (b"c-1", compared(seconds=1e9), "seconds"),
        (b"c-1", compared(shown_first="c"), "shown_first"),
    ],
)
def test_an_invalid_record_is_refused_with_the_reason(key: bytes | None, value: bytes, reason: str) -> None:
    with pytest.raises(UnreadableRecordError, match=reason):
        read_change(TOPICS, topic=FEEDBACK, key=key, value=value, headers=(), timestamp_ms=1, trust=TenantTrust())


def test_a_text_that_only_looks_like_the_nul_character_is_kept() -> None:
    said = seen(rated(comment="\\u0000", origin={"prompt": "a\\u0000 fox\n"})).judgement
    assert isinstance(said, Rating)
    assert said.comment == "\\u0000"


@pytest.mark.parametrize("deletion_first", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_deleted_task_has_no_feedback_whichever_topic_is_read_first(
    store: TaskStoreWriter, file: Path, deletion_first: bool, at_once: bool
) -> None:
    said: list[Change | FeedbackSeen] = [
        seen(rated()), seen(rated("r-2", "two")), seen(compared()), seen(compared("c-2", "zero", "one")),
        seen(compared("c-3", "two", "zero")),
    ]  # fmt: skip
    changes = [deleted(), *said] if deletion_first else [*said, deleted()]
    if at_once:
        apply(store, *changes)
    else:
        for offset, change in enumerate(changes):
            apply(store, change, start=offset)
    assert column(file, "request_id") == ["two"]
    assert column(file, "rating_id", "comparison") == ["c-3"]


def test_a_record_that_cannot_be_applied_leaves_the_others(store: TaskStoreWriter, file: Path) -> None:
    bad = ResultSeen(
        request_id="bad", status=TaskStatus.SUCCEEDED, body="{}", completed_at_ms=1, tenant="default", attempt=2**63
    )
    placed: list[tuple[RecordRef, Change | FeedbackSeen]] = [
        ((FEEDBACK, 0, 0), seen(rated())), ((RESULTS, 0, 0), bad), ((FEEDBACK, 0, 1), seen(rated("r-2"))),
    ]  # fmt: skip
    refused = store.apply(placed, {}, now_ms=7)
    assert [record.topic for record in refused] == [RESULTS]
    assert column(file, "rating_id") == ["r-1", "r-2"]


def test_of_two_partitions_the_later_record_counts(store: TaskStoreWriter, file: Path) -> None:
    new, old = seen(rated(score=5), at_ms=9), seen(rated(score=1), at_ms=3)
    for order in ([(0, new), (1, old)], [(1, old), (0, new)]):
        store.apply([((FEEDBACK, partition, 7), change) for partition, change in order], {}, now_ms=7)
        assert column(file, "score") == [5]


def test_an_older_store_gets_the_tables(engine: Engine, file: Path) -> None:
    with engine.begin() as connection:
        for table in (*TABLES, "dead_letter"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0009'")
    migrate(engine, file)
    apply(TaskStoreWriter(engine), seen(rated()), seen(compared()))
    assert [len(found) for found in rows(file).values()] == [1, 1]


_IDS, _TENANTS, _TASKS = st.sampled_from(["x", "y"]), st.sampled_from(["default", "acme"]), st.sampled_from(["1", "2"])
_SAID = st.one_of(
    st.builds(
        lambda key, task, score, tenant: seen(rated(key, task, score=score), tenant=tenant),
        _IDS, _TASKS, st.integers(1, 5), _TENANTS,
    ),
    st.builds(lambda key, tenant: seen(compared(key, "1", "2"), tenant=tenant), _IDS, _TENANTS),
    st.builds(lambda key, tenant: seen(None, key, tenant=tenant), _IDS, _TENANTS),
)  # fmt: skip
_OF_TASKS = st.one_of(
    st.builds(deleted, _TASKS, _TENANTS),
    st.builds(
        lambda task, tenant: TaskSeen(
            request_id=task, body="{}", priority="standard", tenant=tenant, created_at_ms=1
        ),
        _TASKS, _TENANTS,
    ),
)  # fmt: skip


def built(folder: Path, records: Sequence[tuple[RecordRef, Change | FeedbackSeen]], *, size: int) -> Rows:
    assert write_store(folder / "tasks.sqlite", records, size=size) == []
    return rows(folder / "tasks.sqlite")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_SAID, max_size=10), st.lists(_OF_TASKS, max_size=4), st.integers(1, 16), st.randoms())
def test_a_rebuild_has_the_same_feedback_in_whatever_order_it_reads_the_topics(
    tmp_path_factory: pytest.TempPathFactory, said: list[Any], of_tasks: list[Any], size: int, random: Any
) -> None:
    waiting: list[list[tuple[RecordRef, Change | FeedbackSeen]]] = [
        [((topic, 0, offset), change) for offset, change in enumerate(changes)]
        for topic, changes in ((FEEDBACK, said), (RESULTS, of_tasks))
    ]
    live = [*waiting[0], *waiting[1]]
    mixed: list[tuple[RecordRef, Change | FeedbackSeen]] = []
    while any(waiting):
        mixed.append(random.choice([topic for topic in waiting if topic]).pop(0))
    first = built(tmp_path_factory.mktemp("live"), live, size=1)
    assert built(tmp_path_factory.mktemp("rebuilt"), mixed, size=size) == first
    # Kafka keeps the last record of each key alone.
    last = {
        (change.tenant, change.rating_id): (place, change) for place, change in live if isinstance(change, FeedbackSeen)
    }
    compacted = [*last.values(), *(record for record in live if not isinstance(record[1], FeedbackSeen))]
    assert built(tmp_path_factory.mktemp("compacted"), compacted, size=size) == first
