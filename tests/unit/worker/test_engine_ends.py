"""How an engine ends: on request, at a closed socket, or orphaned; and what must not end it."""

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fluxpool_worker.engine.protocol import (
    Cancel,
    EngineSpec,
    Generate,
    Generated,
    Shutdown,
    Started,
    Step,
    encode_frame,
)
from fluxpool_worker.engine.start_mark import StartMark
from kit.engines.engine import (
    DEADLINE_SECONDS,
    INPUTS,
    STAND_IN_ENGINE,
    Engine,
    StartEngine,
    ends,
    engine_arguments,
    the_end,
)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signals_do_not_end_a_running_job(stand_in_engine: Engine, signal_number: signal.Signals) -> None:
    stand_in_engine.send(Generate(1, replace(INPUTS, prompt="until canceled")))
    stand_in_engine.receive_until(lambda message: isinstance(message, Step))

    stand_in_engine.process.send_signal(signal_number)
    stand_in_engine.send(Cancel(1))
    stand_in_engine.send(Generate(2, INPUTS))

    assert isinstance(the_end(stand_in_engine.receive_until(ends(2)), 2), Generated)


def test_shutdown_ends_a_busy_engine(stand_in_engine: Engine) -> None:
    stand_in_engine.send(Generate(1, replace(INPUTS, prompt="hang")))
    stand_in_engine.receive_until(lambda message: message == Started(1))

    stand_in_engine.send(Shutdown())

    assert stand_in_engine.exit_code() == 0


@pytest.mark.parametrize("prompt", ["hang", "until canceled"])
def test_the_end_of_the_socket_ends_a_busy_engine(stand_in_engine: Engine, prompt: str) -> None:
    stand_in_engine.send(Generate(1, replace(INPUTS, prompt=prompt)))
    stand_in_engine.receive_until(lambda message: message == Started(1))

    stand_in_engine.socket.close()

    assert stand_in_engine.exit_code() == 3


def test_the_end_of_the_socket_ends_an_engine_that_still_loads(start_engine: StartEngine) -> None:
    engine = start_engine()
    engine.send(EngineSpec(model="slow"))

    engine.socket.close()

    assert engine.exit_code() == 3


def test_a_message_that_only_engines_send_ends_the_engine(stand_in_engine: Engine) -> None:
    stand_in_engine.send(Started(1))

    assert stand_in_engine.exit_code() == 5
    assert "'Started' is no message for this end of the socket" in stand_in_engine.stderr.read_text()


AGENT_OF_AN_ENGINE = """
import os, subprocess, sys, threading
command = sys.argv[1:]
descriptors = [int(command[-1]), int(command[-3])]
engine = subprocess.Popen([*command, "--parent-pid", str(os.getpid())], pass_fds=descriptors)
print(engine.pid, flush=True)
threading.Event().wait()
"""


def test_the_engine_dies_with_its_agent_even_on_sigkill(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    mark = StartMark.create()
    with ours, closing(mark), (tmp_path / "engine.log").open("wb") as stderr:
        with theirs:
            agent = subprocess.Popen(
                [sys.executable, "-c", AGENT_OF_AN_ENGINE, *STAND_IN_ENGINE, *engine_arguments(theirs, mark)],
                pass_fds=[theirs.fileno(), mark.descriptor],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        with agent:
            assert agent.stdout is not None
            engine_descriptor = os.pidfd_open(int(agent.stdout.readline()))
            ours.settimeout(DEADLINE_SECONDS)
            ours.sendall(b"".join(encode_frame(EngineSpec(model="any"))))
            ours.recv(1)  # ready, so the engine has asked the kernel to be killed
            agent.kill()
            # Our end of the socket stays open: it is the parent's death that ends the engine here.
            gone, _, _ = select.select([engine_descriptor], [], [], DEADLINE_SECONDS)
        os.close(engine_descriptor)
    assert gone


def test_an_engine_whose_agent_has_ended_does_not_start() -> None:
    ours, theirs = socket.socketpair()
    mark = StartMark.create()
    with ours, theirs, closing(mark):
        ended = subprocess.run(
            [*STAND_IN_ENGINE, *engine_arguments(theirs, mark), "--parent-pid", "1"],
            pass_fds=[theirs.fileno(), mark.descriptor],
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    assert ended.returncode == 3


@pytest.mark.parametrize(
    ("option", "explanation"),
    [
        ("--socket-fd", "--socket-fd 99 is not an inherited socket"),
        ("--started-fd", "--started-fd 99 is not an inherited mark"),
    ],
)
def test_a_descriptor_that_was_not_inherited_is_explained(option: str, explanation: str) -> None:
    ours, theirs = socket.socketpair()
    mark = StartMark.create()
    with ours, theirs, closing(mark):
        ended = subprocess.run(
            [*STAND_IN_ENGINE, *engine_arguments(theirs, mark), option, "99", "--parent-pid", str(os.getpid())],
            pass_fds=[theirs.fileno(), mark.descriptor],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    assert ended.returncode == 2
    assert explanation in ended.stderr


def test_the_process_loop_does_not_import_torch() -> None:
    program = (
        "import sys, fluxpool_worker.engine.process; "
        "sys.exit(str([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]))"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.stderr.strip() == "[]"
