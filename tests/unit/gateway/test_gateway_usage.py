"""What tenants used: counted once for each end of a task, equal in every rebuild, and shown to its tenant alone."""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.projection.projected_records import read_change
from fluxpool_gateway.projection.retention import RetentionSweep
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.task_state import (
    Change,
    DeletionSeen,
    Position,
    ProgressSeen,
    RecordRef,
    ResultSeen,
    TaskKey,
    TaskSeen,
    TaskStatus,
)
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_gateway.usage.figures import MAX_GPU_MS, MAX_PIXELS, Figures
from fluxpool_gateway.usage.hours import HOUR_MS, USAGE_DAYS
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings
from kit.stores.store_file import write_store

TASKS, PROGRESS, RESULTS = "tasks", "progress", "results"
TIMINGS = {"queue_ms": 9000.0, "text_encode_ms": 20.0, "denoise_ms": 1500.5, "vae_ms": 80.0, "store_ms": 70.0}
Row = tuple[str, int, str, int, int, int, int]
"""Tenant, hour, outcome, tasks, images, pixels, milliseconds of a GPU."""


def result(
    request_id: str = "r", *, status: ResultStatus = ResultStatus.SUCCESS, images: int = 1, **more: Any
) -> GenerationResult:
    one = ImageDescription(
        index=0, url="http://images/0.png", object="default/0.png", width=1024, height=512, seed=7, format="png",
        content_type="image/png", bytes=3, sha256="",
    )  # fmt: skip
    described = tuple(one.model_copy(update={"index": number}) for number in range(images))
    values: dict[str, Any] = {"timings": TIMINGS, "image_url": None, "images": described, **more}
    return GenerationResult(request_id=request_id, status=status, **values)


def seen(request_id: str = "r", *, epoch: int = 0, tenant: str = "default") -> TaskSeen:
    return TaskSeen(request_id=request_id, body="{}", priority="standard", tenant=tenant, created_at_ms=1, epoch=epoch)


def ended(
    request_id: str = "r",
    status: TaskStatus = TaskStatus.SUCCEEDED,
    *,
    hour: int = 5,
    images: int = 1,
    epoch: int = 0,
    tenant: str = "default",
) -> ResultSeen:
    of = {TaskStatus.SUCCEEDED: ResultStatus.SUCCESS}.get(status) or ResultStatus(status.value)
    told = result(request_id, status=of, images=images)
    return ResultSeen(
        request_id=request_id,
        status=status,
        body=told.model_dump_json(),
        completed_at_ms=hour * HOUR_MS + 7,
        tenant=tenant,
        epoch=epoch,
        used=Figures.of(told),
    )


def row(outcome: str = "succeeded", *, hour: int = 5, tasks: int = 1, images: int = 1, tenant: str = "default") -> Row:
    return tenant, hour, outcome, tasks, images, images * 1024 * 512, tasks * 1600


def usage(file: Path) -> list[Row]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT * FROM usage_hour ORDER BY tenant, hour, outcome").fetchall()


def apply(store: TaskStoreWriter, *changes: Change) -> None:
    placed: list[tuple[RecordRef, Change]] = [((TASKS, 0, offset), change) for offset, change in enumerate(changes)]
    assert store.apply(placed, {}, now_ms=7) == []


# Counting


def test_a_result_tells_images_pixels_and_the_time_of_the_gpu() -> None:
    assert Figures.of(result(images=2)) == Figures(images=2, pixels=2 * 1024 * 512, gpu_ms=1600)
    assert Figures.of(result(images=0, timings={"input_image_ms": 3.0})) == Figures(gpu_ms=3)


def test_what_a_forged_result_tells_is_bounded() -> None:
    huge = result().images[0].model_copy(update={"width": 2**31 - 1, "height": 2**31 - 1})
    forged = result(timings={"denoise_ms": 1e308, "vae_ms": 1e308, "text_encode_ms": -1e308}, images=0)
    assert Figures.of(forged.model_copy(update={"images": (huge,) * 64})) == Figures(64, MAX_PIXELS, MAX_GPU_MS)


def test_the_record_of_a_result_is_counted_as_it_was_written(store: TaskStoreWriter, file: Path) -> None:
    change = read_change(
        TopicNames(),
        topic=TopicNames().results,
        value=result(completed_at="1970-01-01T05:59:59Z").to_json(),
        headers=(),
        timestamp_ms=1,
        trust=TenantTrust(secret=None, foreign_topics=frozenset()),
    )
    assert isinstance(change, ResultSeen)
    apply(store, change)
    assert usage(file) == [row()]


def test_a_task_counts_once_it_has_ended(store: TaskStoreWriter, file: Path) -> None:
    apply(
        store, seen(), ProgressSeen(request_id="r", status=TaskStatus.RUNNING, at_ms=1, started=True, tenant="default")
    )
    assert usage(file) == []
    apply(store, ended())
    assert usage(file) == [row()]


def test_a_record_that_is_read_again_counts_once(store: TaskStoreWriter, file: Path) -> None:
    for _ in range(3):
        apply(store, seen(), ended(), ended())
    assert usage(file) == [row()]


def test_tasks_are_apart_by_tenant_hour_and_outcome(store: TaskStoreWriter, file: Path) -> None:
    apply(store, *(ended(f"r-{number}", images=2) for number in range(3)), ended("r-0", tenant="acme"))
    apply(
        store,
        ended("late", hour=6),
        ended("bad", TaskStatus.FAILED, images=0),
        ended("gone", TaskStatus.EXPIRED, images=0),
    )
    apply(store, ended("r-3"), ended("off", TaskStatus.CANCELED, images=0))
    assert usage(file) == [
        row(tenant="acme"),
        row("canceled", images=0),
        row("expired", images=0),
        row("failed", images=0),
        row(tasks=4, images=7),
        row(hour=6),
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_task_that_is_replayed_counts_where_it_ends_again(store: TaskStoreWriter, file: Path, at_once: bool) -> None:
    changes: list[Change] = [seen(), ended(status=TaskStatus.FAILED, images=0), seen(epoch=1), ended(epoch=1, hour=9)]
    if at_once:
        apply(store, *changes)
    else:
        expected = [[], [row("failed", images=0)], [], [row(hour=9)]]
        for change, rows in zip(changes, expected, strict=True):
            apply(store, change)
            assert usage(file) == rows
    assert usage(file) == [row(hour=9)]


def test_a_second_end_takes_the_place_of_the_first(store: TaskStoreWriter, file: Path) -> None:
    apply(store, ended(), ended("other"))
    apply(store, replace(ended(images=3), attempt=2))
    assert usage(file) == [row(tasks=2, images=4)]


def test_what_a_deleted_task_used_stays_used(store: TaskStoreWriter, file: Path) -> None:
    apply(store, ended())
    apply(store, DeletionSeen(request_id="r", tenant="default"))
    apply(store, ended(), seen(epoch=1))
    assert usage(file) == [row()]


@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize("place", range(4))
def test_a_rebuild_counts_a_deleted_task_whenever_it_reads_its_record(tmp_path: Path, place: int, size: int) -> None:
    failed, deletion = ended(status=TaskStatus.FAILED, images=0), DeletionSeen(request_id="r", tenant="default")
    records: list[Change] = [failed, ended(epoch=1), deletion]
    records.insert(place, seen(epoch=1))
    placed = [((RESULTS, 0, offset), change) for offset, change in enumerate(records)]
    assert built(tmp_path, placed, size=size) == [row()]


def test_a_record_that_cannot_be_applied_leaves_the_others_counted_once(store: TaskStoreWriter, file: Path) -> None:
    bad = replace(ended("bad"), attempt=2**63)
    changes = [*(ended(f"r-{number}") for number in range(5)), bad, *(ended(f"r-{number}") for number in range(5, 9))]
    refused = store.apply([((RESULTS, 0, offset), change) for offset, change in enumerate(changes)], {}, now_ms=7)
    assert [record.offset for record in refused] == [5]
    assert usage(file) == [row(tasks=9, images=9)]


def test_a_store_of_an_earlier_release_is_counted_when_it_is_migrated(
    store: TaskStoreWriter, engine: Engine, file: Path
) -> None:
    apply(store, ended(), ended("two"), seen("waits"), ended("acme", TaskStatus.FAILED, images=0, tenant="acme"))
    before = usage(file)
    with engine.begin() as connection:
        for table in ("usage_hour", "rating", "comparison", "dead_letter"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0008'")
    migrate(engine, file)
    assert usage(file) == before
    assert len(before) == 2
    apply(store, seen(epoch=1))
    assert usage(file)[1] == row()


async def test_usage_outlives_the_rows_of_its_tasks_and_is_deleted_when_it_is_old(
    store: TaskStoreWriter, file: Path
) -> None:
    apply(store, ended("old", hour=4), ended("new"))
    clock = 0.0
    now_hour = 4 + 24 * USAGE_DAYS
    starts: dict[Position, int] = {(TASKS, 0): 2}

    async def read() -> Mapping[Position, int]:
        return dict(starts)

    async def at_once(work: Any) -> tuple[TaskKey | None, int]:
        return work()  # type: ignore[no-any-return]

    sweep = RetentionSweep(
        store, read_starts=read, in_thread=at_once, clock=lambda: clock, now_ms=lambda: now_hour * HOUR_MS
    )
    await sweep.step()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM task").fetchone() == (0,)
    assert usage(file) == [row(hour=4), row()]
    clock, now_hour, starts[TASKS, 0] = 100, now_hour + 1, 3
    await sweep.step()
    assert usage(file) == [row()]


_ENDS = st.builds(
    ended,
    st.sampled_from(["a", "b"]),
    st.sampled_from([TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELED]),
    hour=st.integers(0, 2),
    images=st.integers(0, 2),
    epoch=st.integers(0, 2),
    tenant=st.sampled_from(["default", "acme"]),
)
_SEEN = st.builds(
    seen, st.sampled_from(["a", "b"]), epoch=st.integers(0, 2), tenant=st.sampled_from(["default", "acme"])
)


def built(folder: Path, records: Sequence[tuple[RecordRef, Change]], *, size: int) -> list[Row]:
    write_store(folder / "tasks.sqlite", records, size=size)
    return usage(folder / "tasks.sqlite")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_SEEN, max_size=8), st.lists(_ENDS, max_size=8), st.integers(1, 16), st.randoms())
def test_a_rebuild_has_the_same_usage_in_whatever_order_it_reads_the_topics(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[Change], ends: list[Change], size: int, random: Any
) -> None:
    waiting = [
        [((topic, 0, offset), change) for offset, change in enumerate(changes)]
        for topic, changes in ((TASKS, tasks), (RESULTS, ends))
    ]
    live = [*waiting[0], *waiting[1]]
    mixed: list[tuple[RecordRef, Change]] = []
    while any(waiting):
        mixed.append(random.choice([topic for topic in waiting if topic]).pop(0))
    first = built(tmp_path_factory.mktemp("live"), live, size=1)
    assert built(tmp_path_factory.mktemp("rebuilt"), mixed, size=size) == first
    assert all(count > 0 for _, _, _, count, *_ in first)


# The route


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        running.clock.now_ms = NOW_MS + 20 * 60_000
        yield running


NOW_HOUR = NOW_MS // HOUR_MS
"""2027-01-15T08:00:00Z, twenty minutes ago."""


async def answer(gateway: Gateway, key: str | None = None, **params: str) -> Any:
    return await gateway.one.ask("GET", "/v1/usage", key or gateway.admin, params=params)


async def test_the_last_24_hours_are_shown_by_hour(gateway: Gateway) -> None:
    gateway.project(
        ended("now", hour=NOW_HOUR),
        ended("early", hour=NOW_HOUR - 23, images=2),
        ended("bad", TaskStatus.FAILED, hour=NOW_HOUR, images=0),
        ended("yesterday", hour=NOW_HOUR - 24),
    )
    shown = (await answer(gateway)).json()
    assert (shown["start"], shown["end"], shown["by"]) == ("2027-01-14T09:00:00Z", "2027-01-15T09:00:00Z", "hour")
    assert len(shown["data"]) == 24
    assert shown["data"][0] == {
        "start": "2027-01-14T09:00:00Z",
        "usage": {
            "tasks": {"succeeded": 1, "failed": 0, "expired": 0, "canceled": 0},
            "images": 2,
            "megapixels": 1.048576,
            "gpu_seconds": 1.6,
        },
    }
    assert shown["data"][1]["usage"]["tasks"]["succeeded"] == 0
    assert shown["total"] == {
        "tasks": {"succeeded": 2, "failed": 1, "expired": 0, "canceled": 0},
        "images": 3,
        "megapixels": 1.572864,
        "gpu_seconds": 4.8,
    }


async def test_days_are_those_of_utc_and_whole(gateway: Gateway) -> None:
    gateway.project(ended("one", hour=NOW_HOUR), ended("two", hour=NOW_HOUR - 9), ended("three", hour=NOW_HOUR - 33))
    query = {"from": "2027-01-14T13:00:00+02:00", "to": "2027-01-15T00:30:00Z", "by": "day"}
    shown = (await answer(gateway, **query)).json()
    assert (shown["start"], shown["end"]) == ("2027-01-14T00:00:00Z", "2027-01-16T00:00:00Z")
    assert [(day["start"], day["usage"]["images"]) for day in shown["data"]] == [
        ("2027-01-14T00:00:00Z", 1),
        ("2027-01-15T00:00:00Z", 1),
    ]


async def test_a_tenant_sees_its_own_usage_alone(gateway: Gateway) -> None:
    gateway.project(ended("r", hour=NOW_HOUR, tenant="acme"))
    keys = [await gateway.create("read", tenant=tenant) for tenant in ("acme", "other")]
    shown = [(await answer(gateway, key)).json()["total"] for key in (*keys, gateway.admin)]
    assert [total["images"] for total in shown] == [1, 0, 0]
    assert [total["tasks"]["succeeded"] for total in shown] == [1, 0, 0]


@pytest.mark.parametrize(
    ("query", "name", "remedy"),
    [
        ({"from": "2027-01-15T08:10:00Z", "to": "2027-01-15T08:05:00Z"}, "from", "must be before to"),
        ({"from": "2028-01-01T00:00:00Z"}, "from", "must be before to, which is now unless it is given"),
        ({"from": "2026-01-01T00:00:00Z"}, "from", "usage is kept for 92 days; use 2026-10-15T08:00:00Z or later"),
        ({"to": "1970-01-01T00:00:00Z"}, "to", "use 2026-10-15T08:00:00Z or later"),
        ({"from": "2026-10-15T08:00:00Z", "by": "day"}, "from", "use 2026-10-16T00:00:00Z or later"),
        (
            {"from": "2026-12-01T00:00:00Z"},
            "to",
            "at most 744 hours are answered at once; use to within 31 days of from",
        ),
        ({"from": "2027-01-01T00:00:00Z", "to": "9999-12-31T00:00:00Z", "by": "day"}, "to", "at most 744 days"),
        ({"from": "1700000000"}, "from", "must be a time such as 2026-04-05T10:00:00Z"),
        ({"by": "week"}, "by", "'hour' or 'day'"),
        ({"tenant": "acme"}, "tenant", ""),
    ],
)
async def test_a_range_that_cannot_be_answered_is_refused_with_field_and_remedy(
    gateway: Gateway, query: dict[str, str], name: str, remedy: str
) -> None:
    refused = await answer(gateway, **query)
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == name
    assert remedy in refused.json()["detail"]


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-10-15T08:00:00Z", "to": "2026-11-15T08:00:00Z"},
        {"from": "2026-10-16T00:00:00Z", "by": "day"},
        {"to": "9999-12-31T23:59:59Z"},
        {"from": "2027-01-15T08:00:00Z", "to": "2027-01-15T08:00:01Z"},
    ],
)
async def test_the_longest_and_the_shortest_ranges_are_answered(gateway: Gateway, query: dict[str, str]) -> None:
    shown = await answer(gateway, **query)
    assert shown.status_code == 200, shown.text
    assert shown.json()["data"]


async def test_the_openapi_document_has_the_parameters_by_their_names(gateway: Gateway) -> None:
    document = (await gateway.one.ask("GET", "/openapi.json")).json()
    parameters = document["paths"]["/v1/usage"]["get"]["parameters"]
    assert [(parameter["name"], parameter["in"]) for parameter in parameters] == [
        ("from", "query"),
        ("to", "query"),
        ("by", "query"),
    ]
