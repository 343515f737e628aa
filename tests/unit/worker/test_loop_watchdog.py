"""A blocked event loop ends its process; a stopped or busy process continues."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.settings.worker import StorageSettings, WorkerSettings
from fluxpool_worker.agent.connections import blocked_limit_seconds, heartbeat_interval_seconds
from fluxpool_worker.agent.loop_watchdog import EXIT_LOOP_BLOCKED, LOG_SECONDS, LOOKS_PER_LIMIT, BlockedTime
from kit.waiting import PATIENCE, wait_until_blocking

LIMIT_SECONDS = 1.0
LOOK_SECONDS = 0.1
END_SECONDS = 60.0

_PROGRAM = """
import asyncio, os, sys, time
from fluxpool_transport.process.logging_setup import configure_logging
from fluxpool_worker.agent.loop_watchdog import ending_when_blocked

def read_a_slow_file():
    time.sleep(600)

def fill_the_pipe_of_the_log():
    while True:
        os.write(2, b"x" * 65536)

async def main(what, limit_seconds):
    with ending_when_blocked(limit_seconds=limit_seconds):
        print("begun", flush=True)
        match what:
            case "sleeps":
                read_a_slow_file()
            case "floods":
                fill_the_pipe_of_the_log()
            case "lives":
                while not os.path.exists(sys.argv[3]):
                    await asyncio.sleep(0.05)
                    print("alive", flush=True)
    print("done", flush=True)

configure_logging(service="test")
asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


@contextmanager
def _program(what: str, folder: Path, *, log: int) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, what, str(LIMIT_SECONDS), str(folder / "end")], stdout=out, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _output(folder: Path) -> list[str]:
    return (folder / "out").read_text().splitlines()


def test_a_blocked_loop_ends_the_process_and_the_log_says_where_it_was_blocked(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, _program("sleeps", tmp_path, log=log.fileno()) as process:
        assert process.wait(END_SECONDS * PATIENCE) == EXIT_LOOP_BLOCKED
    [line] = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (line["event"], line["level"], line["exit_code"]) == ("event_loop_blocked", "error", EXIT_LOOP_BLOCKED)
    assert line["blocked_seconds"] >= line["limit_seconds"] == LIMIT_SECONDS
    assert "read_a_slow_file" in line["stack"]
    assert _output(tmp_path) == ["begun"]


def test_a_loop_that_is_blocked_by_its_log_ends_the_process_without_output(tmp_path: Path) -> None:
    full, _unread = os.pipe()[::-1]
    with _program("floods", tmp_path, log=full) as process:
        assert process.wait(END_SECONDS * PATIENCE) == EXIT_LOOP_BLOCKED
    os.close(full)
    os.close(_unread)


def test_a_process_that_was_stopped_for_longer_than_the_limit_continues(tmp_path: Path) -> None:
    with _program("lives", tmp_path, log=subprocess.DEVNULL) as process:
        wait_until_blocking(lambda: "alive" in _output(tmp_path), deadline_seconds=END_SECONDS, what="a sign of life")
        process.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        wait_until_blocking(
            lambda: time.monotonic() - stopped_at > 3 * LIMIT_SECONDS, deadline_seconds=END_SECONDS, what="the limit"
        )
        process.send_signal(signal.SIGCONT)
        known = len(_output(tmp_path))
        wait_until_blocking(
            lambda: len(_output(tmp_path)) > known + 2 * LIMIT_SECONDS / 0.05,
            deadline_seconds=END_SECONDS,
            what="signs of life for longer than the limit",
        )
        (tmp_path / "end").touch()
        assert process.wait(END_SECONDS * PATIENCE) == 0
    assert _output(tmp_path)[-1] == "done"


def test_time_without_a_heartbeat_adds_up_until_the_next_heartbeat() -> None:
    blocked = BlockedTime(look_seconds=LOOK_SECONDS)
    looks = [(1, 0.0), (1, 0.1), (1, 0.2), (2, 0.3), (2, 0.4)]
    assert [blocked.look(signs=signs, now=now) for signs, now in looks] == pytest.approx([0, 0.1, 0.2, 0, 0.1])


def test_a_late_check_counts_as_one_interval() -> None:
    blocked = BlockedTime(look_seconds=LOOK_SECONDS)
    looks = [(1, 0.0), (1, 0.15), (1, 100.0), (1, 100.1), (2, 200.0)]
    assert [blocked.look(signs=signs, now=now) for signs, now in looks] == pytest.approx([0, 0.15, 0.35, 0.45, 0])


@pytest.mark.parametrize("session_timeout_seconds", [1.0, 6.0, 10.0, 45.0, 300.0])
def test_a_loop_that_blocks_just_before_a_heartbeat_is_noticed_before_the_session_ends(
    session_timeout_seconds: float,
) -> None:
    settings = WorkerSettings(
        kafka=KafkaConnection(bootstrap_servers=("kafka:9092",)),
        storage=StorageSettings(url="file:///images/"),
        session_timeout_seconds=session_timeout_seconds,
    )
    limit_seconds = blocked_limit_seconds(settings)
    # Worst case: the last heartbeat is nearly one check interval old when the loop stops, and the check after the limit
    # comes nearly one interval late.
    noticed_seconds = limit_seconds * (1 + 1 / LOOKS_PER_LIMIT)
    assert heartbeat_interval_seconds(settings) + noticed_seconds < session_timeout_seconds
    if session_timeout_seconds >= 45:
        assert heartbeat_interval_seconds(settings) + noticed_seconds + LOG_SECONDS < session_timeout_seconds
