"""How the agent handles engines that hang or send invalid messages."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import generate_latest

from fluxpool_worker.agent.engine import client as engine_client
from fluxpool_worker.agent.engine.client import (
    EngineClient,
    EngineDiedError,
    EngineLimits,
    EngineLoadError,
    EngineUnstableError,
)
from fluxpool_worker.agent.metrics import WorkerMetrics
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.publisher import ReliablePublisher
from fluxpool_worker.engine.protocol import EngineSpec, GenerationInputs
from kit.waiting import wait_until

PRELUDE = """
import argparse, os, socket, sys, threading
from dataclasses import replace
from fluxpool_worker.engine.protocol import *
options = argparse.ArgumentParser()
for name in ("--socket-fd", "--started-fd", "--parent-pid"):
    options.add_argument(name, type=int)
agent = socket.socket(fileno=options.parse_args().socket_fd)
def say(message):
    agent.sendall(b"".join(encode_frame(message)))
IMAGE = EncodedImage(index=0, seed=1, width=64, height=64, format="png", content_type="image/png", payload=b"image")
"""
READY = "say(Ready('model', 'none', 0.1))\n"
UNTIL_THE_END = "while agent.recv(65536): pass\n"
UNTIL_A_JOB = "heard = b''\nwhile b'Generate' not in heard: heard += agent.recv(65536)\n"
INPUTS = GenerationInputs(prompt="a city", width=64, height=64, steps=1, seed=1)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "WATCHDOG_SECONDS", 0.02)
    monkeypatch.setattr(engine_client, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(engine_client, "SHUTDOWN_SECONDS", 0.1)
    monkeypatch.setattr(engine_client, "LAST_WORDS_SECONDS", 0.1)


def client_of(program: str, *, load_seconds: float = 60.0, silence_seconds: float = 60.0) -> EngineClient:
    limits = EngineLimits(job=60, silence_soft=60, silence_hard=silence_seconds, load=load_seconds)
    command = (sys.executable, "-c", PRELUDE + program)
    return EngineClient(EngineSpec(model="/models/slow"), command=command, limits=limits)


@asynccontextmanager
async def running(client: EngineClient) -> AsyncIterator[None]:
    task = asyncio.create_task(client.run())
    try:
        yield
    finally:
        await client.stop()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def nothing(*_arguments: int) -> None:
    """Ignore progress."""


async def result_of_a_job(client: EngineClient) -> object:
    job = await client.submit(INPUTS, on_started=nothing, on_step=nothing, on_device_free=nothing)
    return await job.result


async def test_an_engine_that_hangs_while_it_loads_is_killed_and_named_the_second_time() -> None:
    client = client_of(UNTIL_THE_END, load_seconds=0.05)
    async with asyncio.timeout(60):
        with pytest.raises(EngineLoadError, match=r"'/models/slow' was not loaded within engine_load_limit_seconds"):
            await client.run()
    assert client.restarts == 1


async def test_an_engine_that_is_ready_has_no_limit_of_loading() -> None:
    client = client_of(READY + UNTIL_THE_END, load_seconds=60)
    async with asyncio.timeout(60), running(client):
        await client.wait_ready()
        assert client.is_ready


async def test_the_phases_of_a_start_and_of_a_generation_are_metrics() -> None:
    client = client_of("say(Ready('model', 'none', 3.5, 'flux', {'imports': 2.0, 'warm_up': 1.5}))\n" + UNTIL_THE_END)
    holds = Holds(limit_seconds=60.0)
    publisher = ReliablePublisher(AIOKafkaProducer, holds=holds)
    metrics = WorkerMetrics(engine=client, publisher=publisher, holds=holds)
    assert 'fluxpool_engine_start_seconds{phase="imports"}' not in generate_latest(metrics.registry).decode()
    async with asyncio.timeout(60), running(client):
        await client.wait_ready()
        metrics.observe_phases({"denoise": 3500.0, "vae": 30.0})
        exposed = generate_latest(metrics.registry).decode()
    assert 'fluxpool_engine_start_seconds{phase="warm_up"} 1.5' in exposed
    assert 'fluxpool_generation_phase_seconds_bucket{le="3.0",phase="denoise"} 0.0' in exposed
    assert 'fluxpool_generation_phase_seconds_bucket{le="4.0",phase="denoise"} 1.0' in exposed
    assert 'fluxpool_generation_phase_seconds_sum{phase="vae"} 0.03' in exposed


@pytest.mark.parametrize(
    "answer",
    [
        "agent.sendall(b'\\x80\\x04not a frame at all')",
        "agent.sendall(FRAME_HEADER.pack(4) + b'null')",
        "agent.sendall(FRAME_HEADER.pack(2**31))",
        "say(Shutdown())",
        "say(Generated(1, (), {}))",
        "say(Generated(1, (replace(IMAGE, content_type='text/html'),), {}))",
        "say(Generated(1, (replace(IMAGE, seed=2),), {}))",
    ],
)
async def test_an_invalid_message_of_an_engine_counts_as_its_death(answer: str) -> None:
    client = client_of(f"{READY}{UNTIL_A_JOB}{answer}\n{UNTIL_THE_END}")
    async with asyncio.timeout(60), running(client):
        with pytest.raises(EngineDiedError):
            await result_of_a_job(client)


async def test_an_engine_does_not_get_the_agents_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUXPOOL_KAFKA_SASL_PASSWORD", "FLUXPOOL_STORAGE_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_TOKEN", "needed for downloads")
    names = "[name for name, value in sorted(os.environ.items()) if value in ('secret', 'needed for downloads')]"
    client = client_of(f"say(Ready(','.join({names}), 'none', 0.1))\n{UNTIL_THE_END}")
    async with asyncio.timeout(60), running(client):
        assert (await client.wait_ready()).model == "HF_TOKEN"


async def test_a_dead_engine_is_noticed_although_another_process_holds_its_socket() -> None:
    client = client_of(f"{READY}{UNTIL_A_JOB}if os.fork(): os._exit(1)\n{UNTIL_THE_END}")
    async with asyncio.timeout(60), running(client):
        with pytest.raises(EngineDiedError, match="code 1"):
            await result_of_a_job(client)


async def test_an_engine_that_survives_sigkill_ends_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "KILLED_SECONDS", 0.1)
    # A process blocked in the kernel cannot be killed; here the signal is just not sent.
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", lambda _process: None)
    client = client_of("threading.Event().wait()", load_seconds=0.05)
    async with asyncio.timeout(60):
        with pytest.raises(EngineUnstableError, match="it waits in the kernel"):
            await client.run()
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def reaped() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    await wait_until(reaped, deadline_seconds=20, what="the end of the engine")


async def test_an_engine_that_never_begins_a_job_counts_as_hung() -> None:
    client = client_of(READY + UNTIL_THE_END, silence_seconds=0.1)
    async with asyncio.timeout(60), running(client):
        with pytest.raises(EngineDiedError):
            await result_of_a_job(client)
