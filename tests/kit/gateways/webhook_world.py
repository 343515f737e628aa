"""A task store and a store of webhooks on the same machine, and the ends of tasks that endpoints are told of."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, insert

from fluxpool_contract.messages.result import GenerationResult, ResultStatus, TaskError
from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.tables import change_counter
from fluxpool_gateway.store.tables import metadata as task_tables
from fluxpool_gateway.store.task_state import Change, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.store.task_store import Heartbeat, TaskStoreWriter
from fluxpool_gateway.webhooks.database import WebhookDatabase
from fluxpool_gateway.webhooks.dispatch.collector import Collector
from fluxpool_gateway.webhooks.endpoints import Endpoint, add_endpoint
from fluxpool_gateway.webhooks.signing import new_secret
from fluxpool_gateway.webhooks.start import prepare_webhooks
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_gateway.webhooks.tables import metadata as webhook_tables

NOW_MS = 1_800_000_000_000


@dataclass(slots=True)
class Clock:
    """The time of day."""

    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms

    def pass_seconds(self, seconds: float) -> None:
        self.now_ms += round(1000 * seconds)


@dataclass(slots=True)
class World:
    """Both stores."""

    tasks_engine: Engine
    tasks: TaskStoreWriter
    reader: TaskStoreReader
    database: WebhookDatabase
    store: WebhookStore
    clock: Clock
    offset: int = field(default=0)

    def add(self, url: str = "https://example.com/", *event_types: str, tenant: str = "default") -> Endpoint:
        endpoint = Endpoint.new(
            tenant, name="test", url=url, event_types=event_types, secret=new_secret(), now_ms=self.clock() - 1
        )
        self.database.write(lambda connection: add_endpoint(connection, endpoint))
        return endpoint

    def project(self, *changes: Change) -> None:
        """In one transaction, as the projector does at the time of the clock."""
        places = [("tasks", 0, self.offset + number) for number in range(len(changes))]
        self.offset += len(changes)
        self.tasks.apply(list(zip(places, changes, strict=True)), {}, now_ms=self.clock())

    def caught_up(self) -> None:
        """The projector says that it has read everything."""
        beat = Heartbeat(pid=1, beat_at_ms=self.clock(), caught_up_at_ms=self.clock(), lag_records=0)
        self.tasks.beat(beat)

    def collector(self) -> Collector:
        return Collector(self.store, self.reader, base="http://gateway/", now_ms=self.clock)


@contextmanager
def webhook_world(folder: Path, clock: Clock | None = None, *, migrated: bool = False) -> Iterator[World]:
    """Both stores as files in a folder; the one of webhooks `migrated` as the program does it."""
    # In a fraction of the time of the migrations, which make the same.
    engine = open_writer(folder / "tasks.sqlite")
    task_tables.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(change_counter).values(id=1, first_number=0, last_number=0))
    if migrated:
        prepare_webhooks(folder / "webhooks.db")
    else:
        hooks = open_writer(folder / "webhooks.db")
        webhook_tables.create_all(hooks)
        hooks.dispose()
    reader = TaskStoreReader(folder / "tasks.sqlite")
    database = WebhookDatabase(folder / "webhooks.db", durable=False)
    store = WebhookStore(folder / "webhooks.db", durable=False)
    try:
        yield World(engine, TaskStoreWriter(engine), reader, database, store, clock or Clock())
    finally:
        store.close()
        database.close()
        reader.close()
        engine.dispose()


def wall_clock() -> Clock:
    """A clock that stands at the time of day."""
    return Clock(time.time_ns() // 1_000_000)


def submitted(
    request_id: str, *, tenant: str = "default", group_id: str | None = None, epoch: int = 0, body: str = "{}"
) -> TaskSeen:
    return TaskSeen(
        request_id=request_id,
        body=body,
        priority="standard",
        tenant=tenant,
        created_at_ms=NOW_MS,
        group_id=group_id,
        epoch=epoch,
    )


def ended(
    request_id: str,
    status: TaskStatus = TaskStatus.SUCCEEDED,
    *,
    at_ms: int = NOW_MS,
    tenant: str = "default",
    epoch: int = 0,
    metadata: dict[str, str] | None = None,
) -> ResultSeen:
    of = ResultStatus.SUCCESS if status is TaskStatus.SUCCEEDED else ResultStatus(status.value)
    error = (
        None
        if status is TaskStatus.SUCCEEDED
        else TaskError(code="internal", error_class="infra", message="oh", retryable=False)
    )
    result = GenerationResult(request_id=request_id, image_url=None, status=of, error=error, metadata=metadata or {})
    return ResultSeen(
        request_id=request_id,
        status=status,
        body=result.model_dump_json(),
        completed_at_ms=at_ms,
        tenant=tenant,
        epoch=epoch,
    )
