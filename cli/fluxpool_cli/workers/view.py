"""How workers are shown. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from fluxpool_cli.output import Result, Table
from fluxpool_cli.terminal import worker_count
from fluxpool_cli.workers.reading import RunningTask, Worker, Workers, WorkerState
from fluxpool_contract.messages import PoolState

_COLUMNS = ("WORKER", "POOL", "STATE", "LANES", "PARTITIONS", "WAITING", "FOR", "TASK")
_OPTIONAL = ("LANES", "PARTITIONS", "POOL", "WAITING")


def workers_result(found: Workers, *, now: datetime) -> Result:
    """Each worker with its task, then the pools as their operators plan them."""
    rows = [_row(worker, now) for worker in found.workers]
    states = Counter(worker.state for worker in found.workers)
    summary = ", ".join(f"{states[state]} {state}" for state in WorkerState if states[state])
    return Result(
        document={
            "workers": [_document(worker, now) for worker in found.workers],
            "pools": [_pool_document(pool) for pool in found.pools],
            "problems": list(found.problems),
        },
        parts=[
            Table(_COLUMNS, rows, optional=_OPTIONAL, empty="no workers"),
            *([f"{worker_count(len(rows))}: {summary}"] if rows else []),
            *_plans(found.pools),
        ],
        names=[worker.name for worker in found.workers],
        notes=found.problems,
    )


def _row(worker: Worker, now: datetime) -> tuple[str, ...]:
    first = worker.tasks[0] if worker.tasks else None
    more = f" and {len(worker.tasks) - 1} more" if len(worker.tasks) > 1 else ""
    again = f", {first.crashes} crash{'' if first.crashes == 1 else 'es'} before" if first and first.crashes else ""
    return (
        worker.name,
        worker.pool or "-",
        worker.state,
        ",".join(worker.partitions) or "-",
        str(sum(map(len, worker.partitions.values()))),
        str(worker.waiting),
        "-" if first is None else f"{_seconds(first, now)} s",
        "-" if first is None else f"{first.request_id}{more}{again}",
    )


def _document(worker: Worker, now: datetime) -> dict[str, Any]:
    return {
        "name": worker.name,
        "pool": worker.pool,
        "state": str(worker.state),
        "partitions": worker.partitions,
        "waiting": worker.waiting,
        "tasks": [
            {
                "request_id": task.request_id,
                "lane": task.lane,
                "topic": task.topic,
                "partition": task.partition,
                "offset": task.offset,
                "started_at": task.started_at.isoformat(),
                "running_seconds": _seconds(task, now),
                "crashes": task.crashes,
            }
            for task in worker.tasks
        ],
    }


def _seconds(task: RunningTask, now: datetime) -> int:
    """How long it runs; clocks of machines differ a little."""
    return max(0, round((now - task.started_at).total_seconds()))


def _pool_document(pool: PoolState) -> dict[str, Any]:
    return {
        "name": pool.pool,
        "namespace": pool.namespace,
        "desired": pool.desired_replicas,
        "ready": pool.ready_replicas,
        "starting": pool.starting_replicas,
        "draining": pool.draining_replicas,
        "reason": pool.reason,
    }


def _plans(pools: Iterable[PoolState]) -> Iterator[str]:
    for pool in pools:
        counts = {"starting": pool.starting_replicas, "draining": pool.draining_replicas}
        others = "".join(f", {count} {state}" for state, count in counts.items() if count)
        yield f"{pool.pool}: {pool.ready_replicas} of {pool.desired_replicas} ready{others}; {pool.reason}"
