"""What runs in a data folder: processes by pid *and* start time, addresses, the last plan; one JSON file.

Owns the file and the rule that protects other processes: the kernel reuses pids, so a process is signaled only when its
start time is the recorded one, too.
"""

import os
import signal
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fluxpool_cli.local.data_dir import DEFAULT_NAME, DataDir

_START_TIME_TOLERANCE_SECONDS = 0.5
"""The system counts in hundredths of a second; no pid is reused within half of one."""
_POLL_INTERVAL_SECONDS = 0.05


class Phase(StrEnum):
    """Where the stack is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class ProcessRecord(BaseModel):
    """One process of the stack."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started_at: float
    """Seconds since 1970, as the system says."""
    log: Path | None = None
    state: str = "running"

    @classmethod
    def of(cls, name: str, pid: int, *, log: Path | None = None, state: str = "running") -> "ProcessRecord":
        """The record of a living process; raises `ProcessLookupError` when there is none with this pid."""
        try:
            started_at = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"{name}: there is no process {pid}") from None
        return cls(name=name, pid=pid, started_at=started_at, log=log, state=state)

    def is_alive(self) -> bool:
        """Whether this process, not a later one with its pid, still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < _START_TIME_TOLERANCE_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def send_signal(self, number: signal.Signals) -> bool:
        """Signal this process; returns whether it was running."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


class LaneState(BaseModel):
    """The lag of one lane as last read."""

    model_config = ConfigDict(frozen=True)

    name: str
    topic: str
    group: str
    lag_records: int
    """Tasks not committed, those in flight included."""
    expired_records: int = 0
    """Tasks that topic retention deleted before a worker consumed them."""
    age_seconds: float | None
    """Since it was read; null when it never was."""


class PlanSummary(BaseModel):
    """The last plan."""

    model_config = ConfigDict(frozen=True)

    replicas: int
    constraint: str
    reason: str


class StackState(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    phase: Phase
    data_dir: Path
    bootstrap_servers: str | None = None
    gateway_url: str | None = None
    model: str | None = None
    supervisor: ProcessRecord
    parts: tuple[ProcessRecord, ...] = ()
    """In the order in which they must be stopped."""
    lanes: tuple[LaneState, ...] = ()
    plan: PlanSummary | None = None
    crashed_workers: int = 0
    """Since the stack was started."""
    workers_problem: str | None = None
    """Why two workers in a row failed before they were ready; null otherwise."""
    options: dict[str, Any] = {}
    """`StackOptions` that it was started with."""

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        draft = path.with_suffix(".new")
        draft.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        # Renamed, not written in place: `local status` reads at any moment and must not see half a file.
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> "StackState | None":
        """The state in the file; null when there is none that can be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def alive(self) -> tuple[ProcessRecord, ...]:
        """The processes that still run, workers first, the supervisor last."""
        return tuple(process for process in (*self.parts, self.supervisor) if process.is_alive())


def wait_until_gone(processes: Iterable[ProcessRecord], *, deadline_seconds: float) -> tuple[ProcessRecord, ...]:
    """Block until none of them runs; returns those that still do when the deadline has passed."""
    ends_at_seconds = time.monotonic() + deadline_seconds
    remaining = tuple(process for process in processes if process.is_alive())
    while remaining and time.monotonic() < ends_at_seconds:
        time.sleep(_POLL_INTERVAL_SECONDS)
        remaining = tuple(process for process in remaining if process.is_alive())
    return remaining


def running_stack(data_dir: Path | None = None) -> StackState | None:
    """The stack that is ready in a data folder, by default `.fluxpool` here; null when none is."""
    state = StackState.load(DataDir(data_dir or Path(DEFAULT_NAME)).state)
    if state is None or state.phase is not Phase.READY or not state.supervisor.is_alive():
        return None
    return state


def why_workers_cannot_start(data_dir: Path | None = None) -> str | None:
    """Why the workers of the running stack fail to start; null when they start, or when no stack runs."""
    state = running_stack(data_dir)
    return None if state is None else state.workers_problem
