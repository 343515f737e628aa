"""Fault points in real processes that die, hang or raise."""

import os
import signal
import subprocess
import sys

import pytest

from fluxpool_transport.process.faults import FaultSpecError, InjectedFaultError, fault_point

_PROGRAM = """
import sys
from fluxpool_transport.process.faults import fault_point
point = fault_point("after-store")
for number in range(3):
    print("before", number, flush=True)
    point()
print("end", flush=True)
"""


def _run(spec: str, *, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FLUXPOOL_FAULT": spec}
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_an_unarmed_point_does_nothing() -> None:
    for environment in ({}, {"FLUXPOOL_FAULT": ""}, {"FLUXPOOL_FAULT": "other-point:raise"}):
        fault_point("after-store", environment)()


def test_kill_ends_the_process_at_the_nth_passing() -> None:
    finished = _run("after-store:kill:2")
    assert finished.returncode == -signal.SIGKILL
    assert finished.stdout.split("\n") == ["before 0", "before 1", ""]


def test_raise_raises_once_with_the_name_of_the_point() -> None:
    point = fault_point("after-store", {"FLUXPOOL_FAULT": "after-store:raise:2"})
    point()
    with pytest.raises(InjectedFaultError, match="after-store"):
        point()
    point()


def test_hang_hangs_until_the_process_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "FLUXPOOL_FAULT": "after-store:hang"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "before 0\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.kill()
        assert process.stdout.read() == ""


def test_the_name_of_another_point_does_not_arm_this_one() -> None:
    assert _run("after-store-later:kill").stdout.endswith("end\n")


@pytest.mark.parametrize(
    "spec", ["after-store", "after-store:die", "after-store:kill:0", ":kill", "After:kill", "a:b:c"]
)
def test_a_malformed_choice_fails_at_import(spec: str) -> None:
    with pytest.raises(FaultSpecError, match=r"expected <point>:<kill\|hang\|raise>"):
        fault_point("after-store", {"FLUXPOOL_FAULT": spec})
    assert "FaultSpecError" in _run(spec).stderr
