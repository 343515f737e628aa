"""Estimates of a job's remaining time."""

import asyncio

from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.engine.protocol import GenerationInputs


def job() -> EngineJob:
    return EngineJob(
        job_id=1,
        inputs=GenerationInputs(prompt="a lighthouse", width=64, height=64, steps=10, seed=1),
        on_started=lambda: None,
        on_step=lambda _step, _total_steps: None,
        on_device_free=lambda: None,
        result=asyncio.Future(),
    )


async def test_a_job_without_a_step_takes_what_others_of_its_size_took() -> None:
    waiting = job()
    assert waiting.remaining_seconds(now=100.0, whole_seconds=4.0) == 4.0
    assert waiting.remaining_seconds(now=100.0, whole_seconds=None) is None
    waiting.started_at = 99.5
    assert waiting.remaining_seconds(now=100.0, whole_seconds=4.0) == 4.0


async def test_a_job_with_steps_takes_as_long_for_the_others() -> None:
    running = job()
    running.started_at, running.step, running.total_steps = 98.0, 4, 10
    assert running.remaining_seconds(now=100.0, whole_seconds=40.0) == 3.0
    running.free_device()
    assert running.remaining_seconds(now=100.0, whole_seconds=40.0) == 0.0
