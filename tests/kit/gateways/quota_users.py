"""Processes that admit tasks of one tenant at the same time, as the server processes of a gateway do."""

import asyncio
import multiprocessing
from collections.abc import Collection, Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.identity.quotas import Quotas
from fluxpool_gateway.settings import TenantLimits
from fluxpool_gateway.store.quota_file import quota_file

START_DEADLINE_SECONDS = 240.0


class NothingStored:
    """A task store in which no task is projected."""

    def count_unfinished(self, tenant: str, *, known: Sequence[str], most: int) -> tuple[int, Collection[str]]:
        assert tenant
        assert len(known) <= most
        return 0, ()


def count_admitted(file: Path, limits: TenantLimits, *, processes: int, tasks: int) -> int:
    """How many tasks are admitted when each process tries so many at once."""
    context = multiprocessing.get_context("spawn")
    counted: Queue[int] = context.Queue()
    started = [
        context.Process(target=_admit, args=(file, limits, counted, f"p{number}", tasks)) for number in range(processes)
    ]
    for process in started:
        process.start()
    admitted = sum(counted.get(timeout=START_DEADLINE_SECONDS) for _ in started)
    for process in started:
        process.join()
    return admitted


def _admit(file: Path, limits: TenantLimits, counted: "Queue[int]", name: str, tasks: int) -> None:
    async def admit() -> int:
        quotas = Quotas({"a": limits}, quota_file(file), NothingStored())
        wanted = (quotas.admit("a", [f"{name}-{number}"]) for number in range(tasks))
        outcomes = await asyncio.gather(*wanted, return_exceptions=True)
        await quotas.close()
        assert all(isinstance(outcome, ProblemError | list) for outcome in outcomes), outcomes
        return sum(isinstance(outcome, list) for outcome in outcomes)

    counted.put(asyncio.run(admit()))
