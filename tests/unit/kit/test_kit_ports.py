"""Ports of tests are apart, also of several processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from fluxpool_cli.local.loopback import PORTS, free_port
from kit import ports

pytestmark = pytest.mark.on_change

OWNER = """
import sys
from kit import ports
ports.free_port = lambda taken, among: int(sys.argv[1])
print(ports.own_port(), flush=True)
sys.stdin.read()
"""


def test_a_port_that_another_process_owns_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = free_port(), free_port()
    offered = iter([theirs, ours])
    monkeypatch.setattr(ports, "free_port", lambda taken, among: next(offered))  # noqa: ARG005 - the offers are fixed
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(theirs)],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        assert int(owner.stdout.readline()) == theirs
        assert ports.own_port() == ours
        owner.kill()


def test_a_process_never_gets_a_port_twice() -> None:
    assert len({ports.own_port() for _ in range(50)}) == 50


def test_programs_under_test_choose_no_port_of_the_tests_own() -> None:
    assert ports.own_port() not in PORTS
