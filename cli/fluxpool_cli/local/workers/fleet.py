"""The worker processes of a local stack: starts and drains them to the planned number, replaces those that crash.

Owns the processes and their states; the scaler decides how many there are.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import httpx

from fluxpool_cli.local.child_process import ChildProcess
from fluxpool_cli.local.loopback import HOST, free_port
from fluxpool_cli.local.state_file import ProcessRecord

WorkerEnvironment = Callable[[str, int], Mapping[str, str]]
"""The environment of a worker, from its name and health port."""

WORKER_COMMAND = (sys.executable, "-m", "fluxpool_worker")
_BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
_KILL_MARGIN_SECONDS = 15.0
"""How long a worker may take to exit after its drain grace."""


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class _Worker:
    child: ChildProcess
    health_port: int
    state: WorkerState = WorkerState.STARTING
    kill_at_seconds: float = float("inf")


@dataclass(slots=True, eq=False, kw_only=True)
class WorkerFleet:
    """All workers of one stack."""

    environment: WorkerEnvironment
    log_dir: Path
    drain_grace_seconds: float
    report: Callable[[str], None]
    """Gets a sentence about every change."""
    crashed: int = field(default=0, init=False)
    """Workers that ended without a signal of ours, since the start."""
    problem: str | None = field(default=None, init=False)
    """Why two workers in a row failed before they were ready: the next one will, too."""
    _workers: dict[str, _Worker] = field(default_factory=dict, init=False)
    _numbers: int = field(default=0, init=False)
    _wanted: int = field(default=0, init=False)
    _crashes_in_a_row: int = field(default=0, init=False)
    _spawn_not_before_seconds: float = field(default=0.0, init=False)
    _last_failure: str | None = field(default=None, init=False)

    @property
    def replicas(self) -> int:
        """The planned number of workers, with those that are about to be replaced."""
        return self._wanted

    @property
    def running(self) -> int:
        """Workers that exist, those that are draining included."""
        return len(self._workers)

    def count(self, state: WorkerState) -> int:
        """Workers in this state."""
        return sum(1 for worker in self._workers.values() if worker.state is state)

    def records(self) -> tuple[ProcessRecord, ...]:
        """Their lines in the state file."""
        return tuple(worker.child.record(state=worker.state) for worker in self._workers.values())

    def log_tails(self) -> str:
        """The last lines of every worker's log, with headings."""
        return "\n".join(f"--- {worker.child.log_path}\n{worker.child.log_tail()}" for worker in self._workers.values())

    async def reconcile(self, replicas: int, *, http: httpx.AsyncClient) -> None:
        """One round: reap and probe, then start or drain workers until there are `replicas`."""
        self._wanted = replicas
        self._reap()
        await self._probe(http)
        serving = [worker for worker in self._workers.values() if worker.state is not WorkerState.DRAINING]
        for _ in range(replicas - len(serving)):
            if time.monotonic() < self._spawn_not_before_seconds:
                break
            self._spawn()
        # Workers that are not ready hold no task and are drained first, then the newest.
        serving.reverse()
        for worker in sorted(serving, key=lambda worker: worker.state is WorkerState.READY)[
            : max(0, len(serving) - replicas)
        ]:
            self._drain(worker)
        self._kill_overdue()

    async def stop(self) -> None:
        """Drain all workers and return once none is left."""
        self._wanted = 0
        for worker in self._workers.values():
            if worker.state is not WorkerState.DRAINING:
                self._drain(worker)
        async with asyncio.TaskGroup() as stopping:
            for worker in self._workers.values():
                grace_seconds = max(0.0, worker.kill_at_seconds - time.monotonic())
                # No second SIGTERM: a worker takes it as the order to drop its task at once.
                stopping.create_task(worker.child.end_within(grace_seconds))
        self._reap()

    def kill(self) -> None:
        """SIGKILL all workers; other workers take their tasks again."""
        for worker in self._workers.values():
            worker.child.send_kill()

    def _spawn(self) -> None:
        self._numbers += 1
        name = f"worker-{self._numbers}"
        try:
            port = free_port()
            child = ChildProcess(
                name,
                WORKER_COMMAND,
                environment=self.environment(name, port),
                log_path=self.log_dir / f"{name}.log",
            )
            child.spawn()
        except OSError as error:
            # A full disk, or no process or port left: the condition may pass, so the stack continues.
            self._numbers -= 1
            delay = self._back_off()
            self.report(f"{name} cannot be started ({error}); the next attempt is in {delay:g} s")
            return
        self._workers[name] = _Worker(child, port)
        self.report(f"{name} starts")

    def _drain(self, worker: _Worker) -> None:
        worker.state = WorkerState.DRAINING
        worker.kill_at_seconds = time.monotonic() + self.drain_grace_seconds + _KILL_MARGIN_SECONDS
        worker.child.terminate()
        self.report(f"{worker.child.name} drains")

    def _kill_overdue(self) -> None:
        for worker in self._workers.values():
            if time.monotonic() > worker.kill_at_seconds and worker.child.exit_status is None:
                self.report(f"{worker.child.name} did not end within its grace and is killed")
                worker.child.send_kill()

    def _reap(self) -> None:
        for name, worker in list(self._workers.items()):
            # A worker that ends after this line is probed once more and reaped in the next round.
            status = worker.child.exit_status
            if status is None:
                continue
            del self._workers[name]
            # A worker that was still starting has no handler yet: the signal itself ends it.
            if worker.state is WorkerState.DRAINING and status in {0, -signal.SIGTERM}:
                self.report(f"{name} ended")
                continue
            if worker.state is WorkerState.DRAINING:
                self.report(f"{name} ended with status {status} while it drained; its log is {worker.child.log_path}")
                continue
            self.crashed += 1
            delay = self._back_off()
            last = worker.child.log_tail(lines=1) or "it logged nothing"
            self.report(
                f"{name} ended unexpectedly with status {status}; a new one starts in {delay:g} s. "
                f"The last line of {worker.child.log_path}: {last}"
            )
            if worker.state is WorkerState.STARTING:
                self._note_failure(failure_in(last, status=status))

    def _back_off(self) -> float:
        """Delay the next start; returns by how many seconds."""
        delay = _BACKOFF_SECONDS[min(self._crashes_in_a_row, len(_BACKOFF_SECONDS) - 1)]
        self._crashes_in_a_row += 1
        self._spawn_not_before_seconds = time.monotonic() + delay
        return delay

    def _note_failure(self, failure: str) -> None:
        if failure == self._last_failure and failure != self.problem:
            self.problem = failure
            self.report(f"workers cannot start: {failure}")
        self._last_failure = failure

    async def _probe(self, http: httpx.AsyncClient) -> None:
        for worker in self._workers.values():
            if worker.state is not WorkerState.STARTING:
                continue
            try:
                response = await http.get(f"http://{HOST}:{worker.health_port}/readyz")
            except httpx.TransportError:
                continue
            if response.is_success:
                worker.state = WorkerState.READY
                self._crashes_in_a_row = 0
                self._last_failure = self.problem = None
                self.report(f"{worker.child.name} is ready")


def failure_in(last_line: str, *, status: int) -> str:
    """Why a worker ended: the `error` of the last line of its log, else its exit status."""
    try:
        error = json.loads(last_line).get("error")
    except (ValueError, AttributeError, RecursionError):
        error = None
    return error if isinstance(error, str) and error else f"they end with status {status}"
