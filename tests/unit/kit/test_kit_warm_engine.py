"""An agent's forked engine works, and ends, as an executed one does."""

import signal
import sys
from dataclasses import replace

import pytest

from fluxpool_worker.engine.protocol import EngineSpec, Generate, Generated, Shutdown
from kit.engines.engine import INPUTS, Engine, StartEngine, ends, the_end
from kit.programs.warm_start import STAND_IN, warm_engine

pytestmark = pytest.mark.on_change

EXECUTED = (sys.executable, str(STAND_IN))


def ready(start_engine: StartEngine, command: tuple[str, ...], **environment: str) -> Engine:
    engine = start_engine(command, environment=environment)
    assert engine.load(EngineSpec(model="any")).model == "stand-in"
    return engine


@pytest.fixture(params=["forked", "executed"])
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return warm_engine(stand_in=True) if request.param == "forked" else EXECUTED


def test_it_generates_logs_and_ends_when_it_is_told_to(start_engine: StartEngine, command: tuple[str, ...]) -> None:
    engine = ready(start_engine, command)
    engine.send(Generate(1, INPUTS))
    assert isinstance(the_end(engine.receive_until(ends(1)), 1), Generated)
    assert engine.mark.last_started() == 1
    engine.send(Shutdown())
    assert engine.exit_code() == 0
    assert {"job_done", "shutdown_asked"} <= {line["event"] for line in engine.log_lines()}


def test_it_dies_with_the_process_that_its_agent_knows(start_engine: StartEngine, command: tuple[str, ...]) -> None:
    engine = ready(start_engine, command)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        engine.process.send_signal(ignored)
    engine.send(Generate(1, INPUTS))
    assert isinstance(the_end(engine.receive_until(ends(1)), 1), Generated)
    engine.process.kill()
    assert engine.exit_code() == -signal.SIGKILL
    # The socket is closed once the engine itself is gone.
    with pytest.raises((EOFError, ConnectionResetError)):
        engine.receive()


def test_its_death_is_its_exit_code(start_engine: StartEngine, command: tuple[str, ...]) -> None:
    engine = ready(start_engine, command)
    engine.send(Generate(1, replace(INPUTS, prompt="ends=killed")))
    assert engine.exit_code() == -signal.SIGKILL


def test_an_armed_fault_point_is_passed(start_engine: StartEngine, command: tuple[str, ...]) -> None:
    engine = ready(start_engine, command, FLUXPOOL_FAULT="engine-job-started:kill")
    engine.send(Generate(1, INPUTS))
    assert engine.exit_code() == -signal.SIGKILL
