"""Metrics that several processes count together, in files that outlive them. Real processes, which are killed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fluxpool_gateway.metrics.gateway_metrics import NO_ROUTE, open_metrics
from fluxpool_gateway.metrics.shared_values import FILE_BYTES, FOLDER_PREFIX, SharedValues, shared_folder
from kit.faults.disk import small_disk

COUNT_AS_TOLD = """
import sys
from pathlib import Path
from fluxpool_gateway.metrics.gateway_metrics import open_metrics
metrics = open_metrics(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    if line == "count\\n":
        metrics.count_request("POST", "/v1/generations", 202)
        metrics.count_accepted("standard", produce_seconds=0.012)
        metrics.event_readers.inc()
    else:
        for number in range(int(line)):
            metrics.count_request("POST", f"/{number}", 202)
    print("done", flush=True)
"""
KEEP_A_FOLDER = """
from fluxpool_gateway.metrics.shared_values import shared_folder
with shared_folder() as folder:
    print(folder, flush=True)
    input()
"""


class Counting:
    """A process that counts."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COUNT_AS_TOLD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready\n"

    def count(self) -> None:
        self.tell("count")

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._answer() == "done\n"

    def kill(self) -> None:
        with self._process:
            self._process.kill()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Callable[[], Counting]]:
    started: list[Counting] = []

    def start() -> Counting:
        started.append(Counting(tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def value_of(folder: Path, sample: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(SharedValues(folder))
    for line in generate_latest(registry).decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name == sample:
            return float(value)
    return None


REQUESTS = 'fluxpool_gateway_requests_total{method="POST",route="/v1/generations",status="202"}'
PROCESSES = "fluxpool_gateway_processes"
READERS = "fluxpool_event_stream_readers"


def test_any_process_reads_the_sums_over_all(counting: Callable[[], Counting], tmp_path: Path) -> None:
    one, two = counting(), counting()
    for process in (one, two, two):
        process.count()
    assert [value_of(tmp_path, name) for name in (REQUESTS, PROCESSES, READERS)] == [3, 2, 3]
    assert value_of(tmp_path, 'fluxpool_gateway_accepted_tasks_total{priority="standard"}') == 3
    assert value_of(tmp_path, 'fluxpool_gateway_produce_seconds_bucket{le="0.01"}') == 0
    assert value_of(tmp_path, 'fluxpool_gateway_produce_seconds_bucket{le="0.015"}') == 3
    assert value_of(tmp_path, "fluxpool_gateway_produce_seconds_count") == 3
    assert value_of(tmp_path, "fluxpool_gateway_produce_seconds_sum") == pytest.approx(0.036)


def test_a_killed_process_keeps_its_counters_and_loses_its_gauges(
    counting: Callable[[], Counting], tmp_path: Path
) -> None:
    one, two = counting(), counting()
    one.count()
    two.count()
    one.kill()
    assert [value_of(tmp_path, name) for name in (REQUESTS, PROCESSES, READERS)] == [2, 1, 1]


def test_one_in_place_of_a_killed_process_continues_its_counters(
    counting: Callable[[], Counting], tmp_path: Path
) -> None:
    keeping = counting()
    keeping.count()
    for restarts in (1, 2):
        process = counting()
        process.count()
        assert [value_of(tmp_path, name) for name in (REQUESTS, PROCESSES, READERS)] == [1 + restarts, 2, 2]
        process.kill()
    # Of two processes, however many there were.
    assert len(list(tmp_path.glob("counter_*.db"))) == 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 3 * FILE_BYTES


def test_every_label_there_is_fits_into_the_allocated_files(counting: Callable[[], Counting], tmp_path: Path) -> None:
    # 30 routes with ten statuses each would be 300.
    counting().tell("400")
    assert (tmp_path / "counter_0.db").stat().st_size == FILE_BYTES


def test_files_that_a_starting_process_has_not_finished_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "counter_0.new").touch()
    assert list(SharedValues(tmp_path).collect()) == []


def test_a_process_without_room_for_the_files_counts_for_itself(tmp_path: Path) -> None:
    # Less than the files of one process: a store to a page without room would end it by a signal.
    with small_disk(tmp_path / "small", size_bytes=FILE_BYTES):
        _counts_for_itself(tmp_path / "small")


def test_a_process_without_the_folder_counts_for_itself(tmp_path: Path) -> None:
    _counts_for_itself(tmp_path / "missing")


def _counts_for_itself(folder: Path) -> None:
    metrics = open_metrics(folder)
    metrics.count_request("GET", NO_ROUTE, 400)
    (own,) = metrics.collectors
    assert not isinstance(own, SharedValues)
    assert b'requests_total{method="GET",route="none",status="400"} 1.0' in generate_latest(_registry(own))


def _registry(collector: object) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)  # type: ignore[arg-type]
    return registry


@contextmanager
def _keeping_a_folder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with subprocess.Popen(
        [sys.executable, "-c", KEEP_A_FOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_the_folder_is_new_private_and_removed_at_the_end() -> None:
    with shared_folder() as folder:
        assert folder.name.startswith(FOLDER_PREFIX)
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "counter_0.db").touch()
    assert not folder.exists()


def test_the_folder_of_a_killed_gateway_is_removed_by_the_next_one_and_that_of_a_living_one_is_not() -> None:
    with _keeping_a_folder() as (killed, abandoned), _keeping_a_folder() as (living, kept):
        killed.kill()
        killed.wait()
        with shared_folder():
            assert not abandoned.exists()
            assert kept.exists()
        living.communicate("\n")
    assert not kept.exists()
