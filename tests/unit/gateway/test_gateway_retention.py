"""Rows of the task store are deleted when Kafka has deleted the record that they last as long as."""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from fluxpool_gateway.projection.retention import STARTS_SECONDS, SWEEP_SECONDS, SWEPT_ROWS, RetentionSweep
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_state import (
    Change,
    Position,
    ProgressSeen,
    RecordRef,
    ResultSeen,
    Source,
    TaskKey,
    TaskSeen,
    TaskStatus,
)
from fluxpool_gateway.store.task_store import LogPosition, TaskStoreWriter

TASKS, PROGRESS, RESULTS = "tasks", "progress", "results"
BEFORE_ALL = TaskKey("", "")


def seen(request_id: str = "r", *, epoch: int = 0, body: str = "{}") -> TaskSeen:
    return TaskSeen(
        request_id=request_id, tenant="default", body=body, priority="standard", created_at_ms=1, epoch=epoch
    )


def moving(request_id: str = "r", *, epoch: int = 0, step: int = 1) -> ProgressSeen:
    return ProgressSeen(
        request_id=request_id,
        tenant="default",
        status=TaskStatus.RUNNING,
        at_ms=1,
        started=False,
        epoch=epoch,
        step=step,
        total_steps=9,
    )


def ended(request_id: str = "r", *, epoch: int = 0) -> ResultSeen:
    return ResultSeen(
        request_id=request_id,
        tenant="default",
        status=TaskStatus.FAILED,
        body="{}",
        completed_at_ms=1,
        epoch=epoch,
    )


def source_of(*records: tuple[RecordRef, Change]) -> RecordRef:
    return max(Source.of(change, place) for place, change in records)[1:]


T0, T1, P0, R0 = (TASKS, 0, 7), (TASKS, 1, 2), (PROGRESS, 0, 90), (RESULTS, 0, 3)


@pytest.mark.parametrize(
    ("records", "source"),
    [
        ([(T0, seen())], T0),
        ([(P0, moving())], P0),
        ([(T0, seen()), (P0, moving())], T0),
        ([(P0, moving()), (T0, seen())], T0),
        ([(T0, seen()), (P0, moving()), (R0, ended())], R0),
        ([(R0, ended()), (T0, seen())], R0),
        ([(T0, seen()), (R0, ended()), (T1, seen(epoch=1))], T1),
        ([(T1, seen(epoch=1)), (T0, seen()), (R0, ended())], T1),
        ([(T0, seen()), (P0, moving(epoch=1)), (T1, seen(epoch=1))], T1),
        ([(T0, seen()), (T1, seen())], T1),
    ],
)
def test_a_row_lasts_as_long_as_its_result_or_else_its_latest_task(
    records: list[tuple[RecordRef, Change]], source: RecordRef
) -> None:
    assert source_of(*records) == source


async def test_rows_are_deleted_with_their_records_and_no_others(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    records: list[tuple[RecordRef, Change]] = [((TASKS, 0, number), seen(f"r-{number}")) for number in range(10)]
    records += [((RESULTS, 0, 0), ended("r-1")), ((TASKS, 1, 0), seen("other-partition"))]
    store.apply(records, {}, now_ms=1)
    starts = {(TASKS, 0): 4, (RESULTS, 0): 0}
    assert store.delete_expired(starts, after=BEFORE_ALL, rows=100) == (None, 3)
    left = await reader.versions([*(f"r-{number}" for number in range(10)), "other-partition"])
    assert {key.request_id for key in left} == {"r-1", "other-partition", *(f"r-{number}" for number in range(4, 10))}
    assert store.delete_expired({**starts, (RESULTS, 0): 1}, after=BEFORE_ALL, rows=100) == (None, 1)


async def test_a_row_of_an_earlier_release_that_is_not_read_again_is_deleted(
    engine: Engine, store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    store.apply([((TASKS, 0, 0), seen("old")), ((TASKS, 0, 1), seen("kept"))], {}, now_ms=1)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE task SET source_topic = NULL, source_partition = NULL, source_offset = NULL, source_rank = NULL"
        )
    store.apply([((TASKS, 0, 1), seen("kept"))], {}, now_ms=1)
    assert store.delete_expired({(TASKS, 0): 0}, after=BEFORE_ALL, rows=100) == (None, 1)
    assert await reader.find("old", tenant="default") is None
    assert await reader.find("kept", tenant="default") is not None


def test_the_file_keeps_its_size(file: Path, store: TaskStoreWriter) -> None:
    sizes = []
    for round_number in range(8):
        first = 300 * round_number
        body = "x" * 2000
        records = [((TASKS, 0, first + number), seen(f"r-{first + number}", body=body)) for number in range(300)]
        store.apply(records, {(TASKS, 0): LogPosition(first + 300)}, now_ms=1)
        _, deleted = store.delete_expired({(TASKS, 0): first}, after=BEFORE_ALL, rows=1000)
        assert deleted == (300 if round_number else 0)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(file.stat().st_size)
    assert max(sizes[2:]) <= 1.1 * sizes[1]


class Logs:
    """The brokers and the clock of a sweep."""

    def __init__(self) -> None:
        self.starts: Mapping[Position, int] = {}
        self.asked = 0
        self.now = 0.0

    async def read(self) -> Mapping[Position, int]:
        self.asked += 1
        return self.starts


async def at_once(work: Callable[[], tuple[TaskKey | None, int]]) -> tuple[TaskKey | None, int]:
    return work()


async def test_all_rows_are_looked_at_part_by_part_once_a_log_begins_later(
    store: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    count = 2 * SWEPT_ROWS + 10
    ids = [f"r-{number:06}" for number in range(count)]
    store.apply([((TASKS, 0, number), seen(name)) for number, name in enumerate(ids)], {}, now_ms=1)
    logs = Logs()
    sweep = RetentionSweep(store, read_starts=logs.read, in_thread=at_once, clock=lambda: logs.now)

    async def left() -> int:
        return len(await reader.versions(ids))

    await sweep.step()
    assert (logs.asked, await left()) == (1, count), "brokers that do not answer delete nothing"
    logs.starts = {(TASKS, 0): count - 1}
    await sweep.step()
    assert logs.asked == 1, "it is not due"
    logs.now += STARTS_SECONDS
    lefts = []
    for _ in range(3):
        await sweep.step()
        await sweep.step()
        lefts.append(await left())
        logs.now += SWEEP_SECONDS
    assert lefts == [count - SWEPT_ROWS, count - 2 * SWEPT_ROWS, 1]
    logs.now += STARTS_SECONDS
    await sweep.step()
    assert (logs.asked, await left()) == (3, 1), "nothing is due while the logs begin where they did"
