"""Workers with a stand-in engine, and a gateway beside them: the same topics, the same folder of images."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fluxpool_contract.settings.worker import StorageSettings
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, running_gateway
from kit.workers.worker import WorkerBench, worker_bench


@asynccontextmanager
async def stand_in_bench(bootstrap_servers: str, folder: Path) -> AsyncIterator[WorkerBench]:
    """A bench for a block; no worker runs yet."""
    async with worker_bench(bootstrap_servers, folder, model="none", stand_in=True, partitions=1) as bench:
        yield bench


@contextmanager
def gateway_beside(bench: WorkerBench, folder: Path, **settings: object) -> Iterator[GatewayProcess]:
    """A gateway for a block, which accepts tasks; `settings` are added to its own."""
    storage = StorageSettings(url=bench.images.as_uri())
    made = gateway_settings(bench.bootstrap_servers, folder / "gateway", bench.topics, storage=storage, **settings)
    with running_gateway(made) as running:
        running.wait_ready()
        yield running
