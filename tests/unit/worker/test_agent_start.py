"""The probe of the object store at start, and the termination message."""

from pathlib import Path
from typing import cast

import pytest

from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_transport.storage.object_store import (
    ConditionalWritesError,
    ObjectStore,
    StorageCredentialsError,
    StorageUnavailableError,
)
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity
from fluxpool_worker.agent.task.task_store import TaskStore
from fluxpool_worker.agent.termination import MAX_MESSAGE_BYTES, write_termination_message

SETTINGS = WorkerSettings.model_validate(
    {"kafka": {"bootstrap_servers": ["kafka:9092"]}, "storage": {"url": "s3://images/"}}
)


class ScriptedStore:
    """A store whose probe fails with these errors in order, then passes."""

    def __init__(self, *errors: StorageUnavailableError) -> None:
        self.errors = list(errors)

    async def probe(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


def task_store(*errors: StorageUnavailableError, limit_seconds: float = 100) -> tuple[TaskStore, Holds]:
    holds = Holds(limit_seconds=limit_seconds)
    identity = WorkerIdentity(worker="w", pool="p")
    store = cast("ObjectStore", ScriptedStore(*errors))
    return TaskStore(store, settings=SETTINGS, identity=identity, holds=holds, clock=Clock()), holds


@pytest.mark.parametrize("error", [ConditionalWritesError("ignores"), StorageCredentialsError("wrong key")])
async def test_a_misconfigured_store_ends_the_start_at_once(error: StorageUnavailableError) -> None:
    store, holds = task_store(error)
    with pytest.raises(type(error), match=str(error)):
        await store.probe(on_trouble=lambda _reason: None)
    assert not holds.causes


async def test_the_start_waits_for_an_unavailable_store_and_logs_it() -> None:
    store, holds = task_store(StorageUnavailableError("no route"))
    told: list[str] = []
    await store.probe(on_trouble=told.append)
    assert told == ["no route"]
    assert not holds.causes


async def test_a_store_that_stays_unavailable_ends_the_start_at_the_hold_limit() -> None:
    store, _ = task_store(StorageUnavailableError("no route"), limit_seconds=0)
    with pytest.raises(HoldExpiredError, match="no route"):
        await store.probe(on_trouble=lambda _reason: None)


def test_the_reason_of_an_exit_is_written_to_the_termination_message(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    write_termination_message("model '/models/flux': there is no such folder", path=path)
    assert path.read_text() == "model '/models/flux': there is no such folder"
    write_termination_message("é" * MAX_MESSAGE_BYTES, path=path)
    assert path.stat().st_size <= MAX_MESSAGE_BYTES


def test_no_termination_message_is_written_outside_kubernetes(tmp_path: Path) -> None:
    write_termination_message("reason", path=tmp_path / "termination-log")
    assert list(tmp_path.iterdir()) == []
