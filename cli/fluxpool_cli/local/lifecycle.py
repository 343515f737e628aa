"""Detach a supervisor, and end a stack from outside: what `local up --detach` and `local down` do.

Owns the rule which processes may be signaled: those that the state file of this folder names, by pid and start time.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.data_dir import DataDir
from fluxpool_cli.local.options import DRAIN_GRACE_SECONDS, StackOptions
from fluxpool_cli.local.state_file import Phase, ProcessRecord, StackState, wait_until_gone

READY_DEADLINE_SECONDS = 300.0
"""Fetching the Kafka jars on a slow line included."""
STOP_DEADLINE_SECONDS = DRAIN_GRACE_SECONDS + 45.0
_LEFTOVER_GRACE_SECONDS = 5.0
_POLL_INTERVAL_SECONDS = 0.1
_LOG_TAIL_LINES = 30


@dataclass(slots=True)
class _LogFollower:
    """Returns the lines that are appended to a log from now on."""

    path: Path
    position_bytes: int

    def lines(self) -> list[str]:
        with self.path.open("rb") as log:
            log.seek(self.position_bytes)
            text = log.read()
        complete = text[: text.rfind(b"\n") + 1]
        self.position_bytes += len(complete)
        return complete.decode(errors="replace").splitlines()


def start_detached(options: StackOptions, *, report: Callable[[str], None]) -> StackState:
    """Start a supervisor of its own session and return once its stack is ready; its progress is reported.

    Raises `CommandError`: 1 with the end of its log when it fails, 5 when it takes too long (it is then ended).
    """
    data_dir = DataDir(options.data_dir)
    data_dir.create()
    log_path = data_dir.supervisor_log
    with log_path.open("ab") as log:
        follower = _LogFollower(log_path, log.tell())
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "fluxpool_cli.local.daemon", options.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    seen: list[str] = []
    ends_at_seconds = time.monotonic() + READY_DEADLINE_SECONDS
    try:
        while time.monotonic() < ends_at_seconds:
            # Asked before the log is read: what an ended supervisor wrote last is then still reported.
            ended = process.poll() is not None
            for line in follower.lines():
                seen.append(line)
                report(line)
            state = StackState.load(data_dir.state)
            # The file may still be that of a stack that ended before; only the pid of this supervisor counts.
            if state is not None and state.phase is Phase.READY and state.supervisor.pid == process.pid:
                return state
            if ended:
                raise CommandError(
                    ExitCode.FAILED,
                    f"the stack did not start (status {process.returncode}); the reason is above and in {log_path}",
                )
            time.sleep(_POLL_INTERVAL_SECONDS)
    except BaseException:
        _end_daemon(process)
        raise
    _end_daemon(process)
    raise CommandError(
        ExitCode.TIMED_OUT,
        f"the stack was not ready within {READY_DEADLINE_SECONDS:.0f} s and was ended; see {log_path}",
    )


def _end_daemon(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=STOP_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for_other(data_dir: DataDir) -> StackState:
    """The state of the stack that another process runs here, once it is ready.

    Raises `CommandError`: 1 when it ends meanwhile, 5 when it does not become ready.
    """
    ends_at_seconds = time.monotonic() + READY_DEADLINE_SECONDS
    while time.monotonic() < ends_at_seconds:
        state = StackState.load(data_dir.state)
        if state is not None and state.phase is Phase.READY and state.supervisor.is_alive():
            return state
        if not data_dir.is_locked():
            raise CommandError(ExitCode.FAILED, f"the stack in {data_dir.path} ended meanwhile; run the command again")
        time.sleep(_POLL_INTERVAL_SECONDS)
    raise CommandError(ExitCode.TIMED_OUT, f"the stack that is starting in {data_dir.path} does not become ready")


def end_stack(data_dir: DataDir, *, report: Callable[[str], None], owner_deadline_seconds: float = 10.0) -> bool:
    """End the stack of this folder; returns whether one ran.

    The supervisor stops its parts in order; parts that it leaves, or that a killed supervisor left, are ended here.
    Raises `CommandError` (1) when a process survives, or when the state file does not name the supervisor in time.
    """
    state = _state_of_owner(data_dir, deadline_seconds=owner_deadline_seconds)
    if state is None:
        return False
    alive = state.alive()
    if not alive:
        data_dir.state.unlink(missing_ok=True)
        return False
    if state.supervisor.send_signal(SIGTERM):
        report(f"stopping the stack in {data_dir.path}")
        if wait_until_gone([state.supervisor], deadline_seconds=STOP_DEADLINE_SECONDS):
            report(
                f"the supervisor ({state.supervisor.pid}) did not end in {STOP_DEADLINE_SECONDS:.0f} s and is killed"
            )
            # The supervisor may have started other parts since; its last state file names them.
            state = StackState.load(data_dir.state) or state
            state.supervisor.send_signal(SIGKILL)
            wait_until_gone([state.supervisor], deadline_seconds=_LEFTOVER_GRACE_SECONDS)
    _end_leftovers(state.parts, report=report)
    survivors = state.alive()
    if survivors:
        names = ", ".join(f"{process.name} ({process.pid})" for process in survivors)
        raise CommandError(ExitCode.FAILED, f"these processes do not end: {names}; end them yourself")
    data_dir.state.unlink(missing_ok=True)
    return True


def _state_of_owner(data_dir: DataDir, *, deadline_seconds: float) -> StackState | None:
    """The state file; waits for a supervisor that has locked the folder and not written the file yet."""
    ends_at_seconds = time.monotonic() + deadline_seconds
    while (state := StackState.load(data_dir.state)) is None:
        if not data_dir.is_locked():
            return None
        if time.monotonic() > ends_at_seconds:
            raise CommandError(
                ExitCode.FAILED,
                f"a process has locked {data_dir.path} but {data_dir.state.name} does not name it; end it yourself",
            )
        time.sleep(_POLL_INTERVAL_SECONDS)
    return state


def _end_leftovers(parts: tuple[ProcessRecord, ...], *, report: Callable[[str], None]) -> None:
    for part in parts:
        if part.send_signal(SIGTERM):
            report(f"ending {part.name} ({part.pid}), which the supervisor left")
            if wait_until_gone([part], deadline_seconds=_LEFTOVER_GRACE_SECONDS):
                part.send_signal(SIGKILL)
                wait_until_gone([part], deadline_seconds=_LEFTOVER_GRACE_SECONDS)
