"""What tests of the gateway share: a task store in a file, and a receiver of webhooks."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_store import TaskStoreWriter
from kit.http.webhook_receiver import Receiver, running_receiver
from kit.stores.store_file import opened_store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.sqlite"


@pytest.fixture
def engine(file: Path) -> Iterator[Engine]:
    with opened_store(file) as opened:
        yield opened


@pytest.fixture
def store(engine: Engine) -> TaskStoreWriter:
    return TaskStoreWriter(engine)


@pytest.fixture
def reader(file: Path) -> Iterator[TaskStoreReader]:
    opened = TaskStoreReader(file)
    yield opened
    opened.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running
