"""How fast the projector decodes records and saves them in the task store: SQLite, and PostgreSQL with a URL.

Everything is the product's but the consumer: batches are in memory, as large as the projector's. Each task has three
records: first those of all tasks (`new`), then events (`moved`), then results (`ended`). `mixed` are batches with all
three of other tasks. The PostgreSQL database is emptied before and after.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from report import Cell, print_report, quiet_logs
from sqlalchemy import Engine, text

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.progress import ProgressEvent, ProgressType
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.projection.projected_records import read_change
from fluxpool_gateway.projection.source import BATCH_RECORDS
from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.postgres.connection import open_projector
from fluxpool_gateway.store.postgres.rebuild import empty_store
from fluxpool_gateway.store.postgres.start import prepare_database
from fluxpool_gateway.store.task_store import LogPosition, TaskStoreWriter

TOPICS: Final = TopicNames()
NOW_MS: Final = time.time_ns() // 1_000_000
PROMPT: Final = "a lighthouse at dusk, long exposure, " * 5
_TRUST: Final = TenantTrust(secret=None, foreign_topics=frozenset())
Record = tuple[str, bytes, bytes]
"""Topic, key and value."""


def main() -> int:
    """Measure each store; returns the exit status, 1 when a task is missing."""
    options = _options()
    quiet_logs()
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs):
            with open_sqlite(Path(folder) / f"{run}.sqlite") as engine:
                rows.append(_measure("sqlite", engine, tasks=options.tasks))
            if options.database_url:
                with _postgresql(options.database_url) as engine:
                    rows.append(_measure("postgresql", engine, tasks=options.tasks))
    best = {
        f"{row['store']}_new_tasks_per_s": max(
            float(other["new_per_s"] or 0) for other in rows if other["store"] == row["store"]
        )
        for row in rows
    }
    print_report(ratios=best, rows=rows, as_json=options.json)
    return int(any(row["stored"] != 2 * options.tasks for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--database-url", help="of a PostgreSQL database without anything that is needed")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


@contextmanager
def open_sqlite(file: Path) -> Iterator[Engine]:
    engine = open_writer(file)
    migrate(engine, file)
    yield engine
    engine.dispose()


@contextmanager
def _postgresql(url: str) -> Iterator[Engine]:
    prepare_database(url)
    empty_store(url)
    engine = open_projector(url)
    yield engine
    engine.dispose()
    empty_store(url)


def _measure(store: str, engine: Engine, *, tasks: int) -> dict[str, Cell]:
    writer = TaskStoreWriter(engine)
    names = [f"0195e3c0-0000-7000-8000-{number:012x}" for number in range(tasks)]
    new = project(writer, [task_record(name) for name in names])
    moved = project(writer, [step_record(name) for name in names])
    ended = project(writer, [result_record(name) for name in names])
    others = [f"mixed-{number}" for number in range(tasks)]
    mixed = project(writer, [make(name) for name in others for make in (task_record, step_record, result_record)])
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT count(*) FROM task WHERE status = 'succeeded'")).scalar_one()
    return {
        "store": store,
        "new_per_s": round(tasks / new),
        "moved_per_s": round(tasks / moved),
        "ended_per_s": round(tasks / ended),
        "mixed_tasks_per_s": round(tasks / mixed),
        "stored": stored,
    }


def project(writer: TaskStoreWriter, records: Sequence[Record]) -> float:
    """Seconds to decode and save all."""
    began = time.perf_counter()
    for start in range(0, len(records), BATCH_RECORDS):
        changes = []
        for offset, (topic, key, value) in enumerate(records[start : start + BATCH_RECORDS], start):
            change = read_change(
                TOPICS, topic=topic, key=key, value=value, headers=(), timestamp_ms=NOW_MS, trust=_TRUST
            )
            assert change is not None
            changes.append(((topic, 0, offset), change))
        refused = writer.apply(changes, {("t", 0): LogPosition(start + len(changes), "id")}, now_ms=NOW_MS)
        assert not refused, refused
    return time.perf_counter() - began


def task_record(name: str) -> Record:
    body = {"request_id": name, "prompt": PROMPT, "width": 1024, "height": 1024, "num_inference_steps": 28, "seed": 7}
    return TOPICS.tasks, name.encode(), json.dumps(body).encode()


def step_record(name: str) -> Record:
    event = ProgressEvent(
        request_id=name, type=ProgressType.STEP, step=7, total_steps=28, at=datetime.fromtimestamp(NOW_MS / 1000, UTC)
    )
    return TOPICS.progress, name.encode(), event.to_json()


def result_record(name: str) -> Record:
    result = GenerationResult(request_id=name, image_url="http://images/0.png", status=ResultStatus.SUCCESS)
    return TOPICS.results, name.encode(), result.to_json()


if __name__ == "__main__":
    sys.exit(main())
