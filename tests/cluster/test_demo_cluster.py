"""`make demo-cluster` with few tasks: its last line, what it keeps running, and a complete shutdown."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from kit.brokers.kafka_classes import quick_start
from kit.programs.processes import is_alive
from kit.programs.warm_parts import warm_parts
from kit.waiting import wait_until_blocking

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 120


class Demo:
    """A demo in its own process, with its output and every process that it started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.descendants: set[int] = set()
        self._noted_lines = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_line(self, pattern: str, *, deadline_seconds: float) -> str:
        """Wait for a line with this beginning; fails at once when the demo ends without one."""

        def found() -> str | None:
            if self.process.poll() is not None:
                self._reader.join()
            elif len(self.lines) > self._noted_lines:
                # It says what it starts; every look is one at all processes of the machine.
                self._noted_lines = len(self.lines)
                self._note_descendants()
            line = next((line for line in self.lines if re.match(pattern, line)), None)
            assert line or self.process.poll() is None, "\n".join(self.lines)
            return line

        try:
            line = wait_until_blocking(found, deadline_seconds=deadline_seconds, what=pattern)
        except AssertionError as error:
            error.add_note("\n".join(self.lines))
            raise
        assert line is not None
        return line

    def wait_processes(self, count: int) -> None:
        """Wait until it has started this many processes."""

        def started() -> bool:
            self._note_descendants()
            return len(self.descendants) >= count

        wait_until_blocking(started, deadline_seconds=60, what=f"{count} processes")

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self._note_descendants()
        self.process.send_signal(signal.SIGINT)
        return self.wait_end()

    def wait_end(self) -> int:
        """Wait until it has stopped everything; returns the exit status."""
        status = self.process.wait(timeout=STOP_SECONDS)
        self._reader.join()
        return status

    def left(self) -> list[int]:
        """Its processes that still run."""
        return [pid for pid in self.descendants if is_alive(pid)]

    def _note_descendants(self) -> None:
        self.descendants |= {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))


StartDemo = Callable[..., AbstractContextManager[Demo]]


@pytest.fixture
def running_demo(kafka_libs: Path, tmp_path: Path) -> StartDemo:
    """Start demos with these options; their brokers map Kafka's classes from a file, their model's writer is forked."""
    warm = warm_parts("fluxpool_worker.engine.tiny_checkpoint")
    environment = {
        **os.environ,
        **warm,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "hack"), warm["PYTHONPATH"])),
        "TMPDIR": str(tmp_path),
        "JDK_JAVA_OPTIONS": " ".join(quick_start(kafka_libs)),
    }
    return partial(_running_demo, environment)


@contextmanager
def _running_demo(environment: Mapping[str, str], *arguments: str) -> Iterator[Demo]:
    process = subprocess.Popen(
        [sys.executable, "-m", "demo_cluster", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Demo(process)
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("isolation")
def test_a_demo_counts_everything_stays_up_for_kubectl_and_leaves_nothing(
    running_demo: StartDemo, binaries: Path, tmp_path: Path
) -> None:
    with running_demo("--tasks", "3", "--max-replicas", "1", "--keep") as demo:
        export = demo.wait_line("export KUBECONFIG=", deadline_seconds=700)
        last = demo.wait_line("demo-cluster: ", deadline_seconds=30)
        assert re.fullmatch(r"demo-cluster: 6 tasks, 6 images, 0 lost, 0 doubled, peak [12] replicas, \d+ s", last)
        for pool in ("standard", "vip"):
            assert any(line.startswith(f"{pool}: 1 replica (") for line in demo.lines), demo.lines
            assert any(line.startswith(f"{pool}: 0 replicas (") for line in demo.lines), demo.lines
        listed = subprocess.run(
            [str(binaries / "kubectl"), "get", "fluxworkerpools", "--all-namespaces", "--output", "name"],
            env={**os.environ, "KUBECONFIG": export.partition("=")[2], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert listed.stdout.split() == [
            "fluxworkerpool.fluxpool.dev/standard",
            "fluxworkerpool.fluxpool.dev/vip",
        ]
        assert demo.interrupt() == 0, "\n".join(demo.lines)
        assert demo.left() == []
        assert list(tmp_path.glob("fluxpool-demo-cluster-*")) == []


@pytest.mark.usefixtures("isolation", "binaries")
def test_ctrl_c_while_everything_starts_stops_it(running_demo: StartDemo, tmp_path: Path) -> None:
    with running_demo() as demo:
        # Before its components are ready: nothing of it that runs is known to be complete.
        demo.wait_line("starting etcd", deadline_seconds=180)
        demo.wait_processes(4)
        assert demo.interrupt() == 128 + signal.SIGINT, "\n".join(demo.lines)
        assert demo.lines[-1] == "stopping everything"
        assert demo.left() == []
        assert list(tmp_path.glob("fluxpool-demo-cluster-*")) == []


@pytest.mark.usefixtures("isolation", "binaries")
def test_tasks_that_are_late_count_as_lost_and_exit_1(running_demo: StartDemo, tmp_path: Path) -> None:
    # No worker loads its model in a second.
    with running_demo("--tasks", "1", "--max-replicas", "1", "--timeout", "1") as demo:
        last = demo.wait_line("demo-cluster: ", deadline_seconds=400)
        assert re.fullmatch(r"demo-cluster: 2 tasks, 0 images, 2 lost, 0 doubled, peak 0 replicas, \d+ s", last)
        assert demo.wait_end() == 1, "\n".join(demo.lines)
        assert "standard-001 has no result" in demo.lines
        assert demo.lines[-1].startswith(f"what the parts wrote is in {tmp_path}/fluxpool-demo-cluster-")
        assert demo.left() == []
