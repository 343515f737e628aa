"""Fixtures that several files share: a task store in PostgreSQL; workers with a stand-in engine and their gateway."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fluxpool_gateway.store.postgres.connection import open_projector
from fluxpool_gateway.store.postgres.reads import PostgresReads
from fluxpool_gateway.store.postgres.start import prepare_database
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_store import TaskStoreWriter
from kit.gateways.gateway_process import GatewayProcess
from kit.stores.postgres import PostgresServer
from kit.workers.served_bench import gateway_beside, stand_in_bench
from kit.workers.worker import WorkerBench


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """The address of a new database with the schema of the task store."""
    address = postgres.database()
    prepare_database(address)
    return address


@pytest.fixture
def writer(url: str) -> Iterator[TaskStoreWriter]:
    """The projector's connection to it."""
    engine = open_projector(url)
    yield TaskStoreWriter(engine)
    engine.dispose()


@pytest.fixture
def reader(url: str) -> Iterator[TaskStoreReader]:
    """A server's connections to it."""
    opened = TaskStoreReader(PostgresReads(url))
    yield opened
    opened.close()


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """Workers with the stand-in engine; none runs yet."""
    async with stand_in_bench(bootstrap_servers, tmp_path) as bench:
        yield bench


@pytest.fixture
def gateway(bench: WorkerBench, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway before these workers."""
    with gateway_beside(bench, tmp_path) as running:
        yield running
