"""Workers of two releases for one bench: this one, and a stand-in for the next.

Knows how each is started and how their records differ; `next_version/sitecustomize.py` has the changes of the next
release.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from kit.brokers.kafka import TopicRecord
from kit.workers.worker import WorkerBench, WorkerProcess

NEXT_VERSION = Path(__file__).with_name("next_version")


class Release(StrEnum):
    """Release of a worker."""

    THIS = "this"
    NEXT = "next"

    @property
    def other(self) -> "Release":
        """The other one."""
        return Release.THIS if self is Release.NEXT else Release.NEXT


async def start_ready(
    bench: WorkerBench, release: Release, *, fault: str | None = None, **changes: Any
) -> WorkerProcess:
    """Start a worker of that release, with a fault or changed settings, and wait until it is ready."""
    environment = {} if fault is None else {"FLUXPOOL_FAULT": fault}
    if release is Release.NEXT:
        environment["PYTHONPATH"] = str(NEXT_VERSION)
    return await bench.start_ready(environment=environment, **changes)


def release_of(record: TopicRecord) -> Release:
    """Release that wrote a record, a result or progress."""
    return Release.NEXT if "ce_fluxpoolrelease" in dict(record.headers) else Release.THIS


async def releases_at_work(bench: WorkerBench) -> set[Release]:
    """Releases of the ledgers in the committed offsets of the standard lane now."""
    committed = await bench.offsets.committed(bench.group)
    ledgers: list[dict[str, Any]] = [json.loads(found.metadata) for found in committed.values() if found.metadata]
    return {Release.NEXT if "release" in ledger else Release.THIS for ledger in ledgers}
