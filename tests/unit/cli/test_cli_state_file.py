"""Only processes that this stack started are signaled, also after their pids were reused."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.data_dir import AlreadyRunningError, DataDir, DataDirError
from fluxpool_cli.local.lifecycle import end_stack
from fluxpool_cli.local.loopback import free_port
from fluxpool_cli.local.state_file import Phase, ProcessRecord, StackState, wait_until_gone
from kit.waiting import wait_until_blocking

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that the stack did not start."""
    process = start(SLEEPER)
    with process:
        yield process
        process.kill()


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    folder = DataDir(tmp_path / "stack")
    folder.create()
    return folder


def foreign(record: ProcessRecord) -> ProcessRecord:
    """The record of a process whose pid another process has now."""
    return record.model_copy(update={"started_at": record.started_at - 3600})


def state_of(data_dir: DataDir, supervisor: ProcessRecord, *parts: ProcessRecord) -> StackState:
    return StackState(phase=Phase.READY, data_dir=data_dir.path, supervisor=supervisor, parts=parts)


def test_a_process_with_a_recorded_pid_but_another_start_time_is_never_signaled(
    stranger: subprocess.Popen[bytes],
) -> None:
    record = foreign(ProcessRecord.of("worker-1", stranger.pid))
    assert not record.is_alive()
    assert not record.send_signal(signal.SIGKILL)
    assert stranger.poll() is None


def test_the_recorded_process_is_signaled_and_then_counts_as_ended(stranger: subprocess.Popen[bytes]) -> None:
    record = ProcessRecord.of("worker-1", stranger.pid)
    assert record.is_alive()
    assert record.send_signal(signal.SIGTERM)
    # Not reaped yet: a zombie no longer runs.
    assert wait_until_gone([record], deadline_seconds=10) == ()
    assert not record.send_signal(signal.SIGTERM)


def test_down_does_not_signal_other_processes_with_reused_pids(
    data_dir: DataDir, stranger: subprocess.Popen[bytes]
) -> None:
    record = foreign(ProcessRecord.of("supervisor", stranger.pid))
    state_of(data_dir, record, record.model_copy(update={"name": "worker-1"})).save(data_dir.state)
    assert not end_stack(data_dir, report=lambda _line: None)
    assert stranger.poll() is None
    assert not data_dir.state.exists()


def test_down_ends_the_orphans_of_a_dead_supervisor_and_nothing_else(
    data_dir: DataDir, stranger: subprocess.Popen[bytes]
) -> None:
    with start(SLEEPER) as supervisor, start(SLEEPER) as left_behind, start(STUBBORN) as stubborn:
        state_of(
            data_dir,
            ProcessRecord.of("supervisor", supervisor.pid),
            ProcessRecord.of("worker-1", left_behind.pid),
            ProcessRecord.of("worker-2", stubborn.pid),
            foreign(ProcessRecord.of("gateway", stranger.pid)),
        ).save(data_dir.state)
        supervisor.kill()
        supervisor.wait()
        ended: list[str] = []
        assert end_stack(data_dir, report=ended.append)
        assert left_behind.wait(timeout=30) == -signal.SIGTERM
        assert stubborn.wait(timeout=30) == -signal.SIGKILL
    assert stranger.poll() is None
    assert [line.split()[1] for line in ended] == ["worker-1", "worker-2"]
    assert not end_stack(data_dir, report=ended.append)


def test_down_in_an_unused_folder_finds_nothing(tmp_path: Path) -> None:
    assert not end_stack(DataDir(tmp_path / "absent"), report=lambda _line: None)


def test_a_damaged_state_file_counts_as_absent(data_dir: DataDir) -> None:
    data_dir.state.write_text('{"version": 1, "phase": "rea')
    assert StackState.load(data_dir.state) is None
    assert not end_stack(data_dir, report=lambda _line: None)


def test_a_state_is_read_as_it_was_written(data_dir: DataDir) -> None:
    state = state_of(data_dir, ProcessRecord.of("supervisor", os.getpid()))
    state.save(data_dir.state)
    assert StackState.load(data_dir.state) == state


def test_a_folder_has_one_supervisor_and_its_death_releases_the_lock(data_dir: DataDir) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fluxpool_cli.local.data_dir import DataDir\n"
        "with DataDir(Path(sys.argv[1])).lock(): print('up', flush=True); time.sleep(600)"
    )
    with start([sys.executable, "-c", program, str(data_dir.path)]) as holder:
        assert data_dir.is_locked()
        with pytest.raises(AlreadyRunningError, match="local down"), data_dir.lock():
            pass
        holder.kill()
    wait_until_blocking(lambda: not data_dir.is_locked(), deadline_seconds=5, what="the lock is free")


def test_down_names_a_folder_whose_owner_is_unknown(data_dir: DataDir) -> None:
    with data_dir.lock(), pytest.raises(CommandError, match="does not name it") as failure:
        end_stack(data_dir, report=lambda _line: None, owner_deadline_seconds=0.1)
    assert failure.value.code is ExitCode.FAILED


def test_the_gateway_keeps_its_port_between_runs(data_dir: DataDir) -> None:
    port = data_dir.gateway_port(None)
    assert data_dir.gateway_port(None) == port
    other = free_port()
    assert data_dir.gateway_port(other) == other
    assert data_dir.gateway_port(None) == other


def test_a_taken_gateway_port_is_named_with_the_remedy(data_dir: DataDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataDirError, match=f"--gateway-port: {port} is in use"):
            data_dir.gateway_port(port)


def test_a_data_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="--data-dir"):
        DataDir(tmp_path / "file" / "stack").create()
