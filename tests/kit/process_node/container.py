"""One run of a container as processes: start through the shim, find again, signal, measure, wait for the end.

Owns the attempt folder (`request.json`, `started.json`, `exit.json`, `log`). Knows nothing of pods,
restarts or the API.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from kit.process_node.shim import start_ticks
from kit.programs.fork_server import Imports
from kit.programs.warm_start import start_program

_SHIM = Path(__file__).with_name("shim.py")
_SHIM_MODULE = "kit.process_node.shim"
_OOM_MARKER = "oom-killed"
_UNKNOWN_EXIT_CODE = 137


class StopScope(StrEnum):
    """Who gets SIGTERM: the whole process group, or the main process only, as with a container runtime."""

    PROCESS_GROUP = "process-group"
    MAIN_PROCESS = "main-process"


class ContainerStartError(Exception):
    """The container's program or its mounts cannot be set up; the message says which."""


class IsolationUnavailableError(Exception):
    """This machine does not permit mount namespaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or folder of the machine at a path of the container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """The complete configuration of a container; nothing is inherited from the agent."""

    argv: Sequence[str]
    forked: bool = False
    """Whether a `python -m` is run with what a fork server has imported, instead of being executed."""
    environment: Mapping[str, str]
    working_dir: str
    mounts: Sequence[Mount]
    read_only_root: bool
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerExit:
    """The end of a container; `exit_code` is 128 + the signal's number after a signal, times are Unix seconds."""

    exit_code: int
    started_at: float
    finished_at: float
    out_of_memory: bool = False
    known: bool = True


def check_isolation() -> None:
    """Raise `IsolationUnavailableError` when containers cannot have separate file systems here."""
    probe = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay "
    probe += "overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    try:
        outcome = subprocess.run(
            ["unshare", "--mount", "--uts", "sh", "-c", probe], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise IsolationUnavailableError("there is no `unshare` (util-linux) on the path: install it") from None
    if outcome.returncode:
        raise IsolationUnavailableError(
            f"no private mount namespaces with overlays here ({outcome.stderr.strip()}): run as root on Linux, "
            "with CAP_SYS_ADMIN in a container"
        )


class ContainerProcess:
    """A container started by this agent or an earlier one."""

    def __init__(self, folder: Path) -> None:
        """Read `started.json` of an attempt folder; `start` and `attach` are the ways to get one."""
        started = json.loads((folder / "started.json").read_bytes())
        self.folder = folder
        self.pid = int(started["pid"])
        self.started_at = float(started["started_at"])
        self._pid_start_ticks = int(started["pid_start_ticks"])
        self._shim_pid = int(started["shim_pid"])
        self._shim_start_ticks = int(started["shim_start_ticks"])

    @classmethod
    async def start(cls, folder: Path, request: ContainerRequest, *, owner_pid: int) -> "ContainerProcess":
        """Start a container in a new attempt folder; it dies with `owner_pid`. Raises `ContainerStartError`."""
        (folder / "root").mkdir(parents=True, exist_ok=True)
        # Fault points are bound at import.
        is_module = list(request.argv[:2]) == [sys.executable, "-m"] and not request.environment.get("FLUXPOOL_FAULT")
        forked = request.forked and is_module
        written = asdict(request) | {
            "forked": forked,
            "log_path": str(log_path(folder)),
            "owner_pid": owner_pid,
            "root": str(folder / "root"),
        }
        (folder / "request.json").write_text(json.dumps(written))
        launching = asyncio.create_task(asyncio.to_thread(_launch_forked, folder) if forked else _launch(folder))
        try:
            output, errors = await asyncio.shield(launching)
        except asyncio.CancelledError:
            # A partial start would leave an unknown process.
            await launching
            raise
        answer = json.loads(output) if output else {"error": errors.decode(errors="replace").strip() or "no answer"}
        if "error" in answer:
            raise ContainerStartError(str(answer["error"]))
        return cls(folder)

    @classmethod
    def attach(cls, folder: Path) -> "ContainerProcess | None":
        """Return the container of an attempt folder, running or ended, or None when it never started."""
        try:
            return cls(folder)
        except FileNotFoundError:
            return None

    @property
    def running(self) -> bool:
        """Whether its end has not been observed yet: the shim lives, by pid and start time."""
        return _is_process(self._shim_pid, self._shim_start_ticks)

    async def wait(self) -> ContainerExit:
        """Return how it ended, once all of its processes have ended."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self._shim_pid)
            try:
                # A pid may have been reused; a pidfd of the right process cannot.
                if self.running:
                    await _readable(descriptor)
            finally:
                os.close(descriptor)
        try:
            ended = json.loads((self.folder / "exit.json").read_bytes())
        except FileNotFoundError:
            # The shim was killed: its container must not continue unsupervised.
            self.kill()
            return ContainerExit(
                exit_code=_UNKNOWN_EXIT_CODE, started_at=self.started_at, finished_at=time.time(), known=False
            )
        return ContainerExit(
            exit_code=int(ended["exit_code"]),
            started_at=self.started_at,
            finished_at=float(ended["finished_at"]),
            out_of_memory=(self.folder / _OOM_MARKER).exists(),
        )

    def terminate(self, scope: StopScope) -> None:
        """Send SIGTERM."""
        if not _is_process(self.pid, self._pid_start_ticks):
            return
        with contextlib.suppress(ProcessLookupError):
            match scope:
                case StopScope.PROCESS_GROUP:
                    os.killpg(self.pid, signal.SIGTERM)
                case StopScope.MAIN_PROCESS:
                    os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the process group; the shim ends processes that left it."""
        if _is_process(self.pid, self._pid_start_ticks):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def kill_for_memory(self) -> None:
        """SIGKILL it and record that it exceeded its memory limit."""
        (self.folder / _OOM_MARKER).touch()
        self.kill()

    def resident_bytes(self) -> int:
        """Sum of the resident memory of all of its processes; shared pages count more than once."""
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._shim_pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        return total

    async def execute(self, command: Sequence[str], *, timeout_seconds: float | None) -> int:
        """Run a command inside the container with its environment; returns its exit code, 124 after the timeout."""
        environment = json.loads((self.folder / "request.json").read_bytes())["environment"]
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/nsenter",
            f"--target={self.pid}",
            "--mount",
            "--uts",
            "--root",
            "--wd",
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                return await process.wait()
        except TimeoutError:
            return 124
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def _launch(folder: Path) -> tuple[bytes, bytes]:
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(_SHIM),
        str(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
    )
    return await launcher.communicate()


def _launch_forked(folder: Path) -> tuple[bytes, bytes]:
    reading, writing = os.pipe()
    with open(reading, "rb") as answer, tempfile.TemporaryFile() as errors:  # noqa: PTH123 - of a descriptor
        with open(writing, "wb") as output:  # noqa: PTH123
            launcher = start_program(
                _SHIM_MODULE, str(folder), environment={}, output=output, errors=errors, imported=Imports.PODS
            )
        answered = answer.read()
        launcher.wait()
        errors.seek(0)
        return answered, errors.read()


def log_path(folder: Path) -> Path:
    """Return the file of an attempt's output."""
    return folder / "log"


def _is_process(pid: int, expected_start_ticks: int) -> bool:
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        return start_ticks(pid) == expected_start_ticks
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return False


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
