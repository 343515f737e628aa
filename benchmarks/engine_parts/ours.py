"""The engine as the worker runs it: its own process, jobs over its socket, image files back."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from typing import Final

from report import Cell

from engine_parts.ground import NEGATIVE_PROMPT, PROMPT, TRUE_CFG_SCALE, Ground, seconds_of_runs
from engine_parts.readings import Readings
from engine_parts.speed import Case, speed_row
from fluxpool_worker.agent.engine.client import EngineClient, EngineLimits
from fluxpool_worker.engine.protocol import Device, EngineSpec, Generated, GenerationInputs, Ready

LIMIT_SECONDS: Final = 300.0
QUALITIES: Final = "quality" in {item.name for item in fields(GenerationInputs)}
"""Whether this version of the engine has a fast mode."""


def spec(ground: Ground, dtype: str) -> EngineSpec:
    """Which checkpoint the engine loads, and how."""
    return EngineSpec(
        model=str(ground.model),
        device=Device(ground.device),
        offline=True,
        transformer_dtype=dtype,
        encoder_dtype="float32" if ground.is_tiny else "bfloat16",
    )


def limits() -> EngineLimits:
    """Generous: nothing is to be killed."""
    return EngineLimits(job=LIMIT_SECONDS, silence_soft=LIMIT_SECONDS, silence_hard=LIMIT_SECONDS, load=LIMIT_SECONDS)


@contextlib.asynccontextmanager
async def running_engine(engine_spec: EngineSpec) -> AsyncIterator[tuple[EngineClient, Ready]]:
    """An engine that has loaded its model; it ends with the block."""
    client = EngineClient(engine_spec, limits=limits())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(client.run())
        waiting = group.create_task(client.wait_ready())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            waiting.cancel()
            await running
        try:
            yield client, await waiting
        finally:
            await client.stop()


def inputs(case: Case, *, seed: int, quality: str | None = None) -> GenerationInputs:
    """A job; each case and seed has a prompt of its own, so that its text is encoded."""
    return GenerationInputs(
        prompt=f"{PROMPT}, {case}, {seed}",
        negative_prompt=f"{NEGATIVE_PROMPT}, {case}, {seed}" if case.guided else None,
        true_cfg_scale=TRUE_CFG_SCALE if case.guided else 1.0,
        width=case.side,
        height=case.side,
        steps=case.steps,
        seed=seed,
        **({} if quality is None else {"quality": quality}),  # type: ignore[arg-type]
    )


async def draw(client: EngineClient, job_inputs: GenerationInputs) -> Generated:
    """One job, from its submission to its files."""
    job = await client.submit(
        job_inputs, on_started=lambda: None, on_step=lambda _step, _total: None, on_device_free=lambda: None
    )
    result: Generated = await job.result
    return result


async def measure_exact(ground: Ground) -> list[dict[str, Cell]]:
    """The main case, more steps and classifier-free guidance, in every dtype."""
    cases = [Case(side=ground.side, steps=steps) for steps in ground.steps]
    cases.append(Case(side=ground.side, steps=ground.steps[0], guided=True))
    return [row for dtype in ground.dtypes for row in await _rows(ground, "exact", cases, dtype=dtype, quality=None)]


async def measure_sizes(ground: Ground) -> list[dict[str, Cell]]:
    """The main case's steps at other sizes, in the default dtype."""
    cases = [Case(side=side, steps=ground.steps[0]) for side in ground.sides if side != ground.side]
    return await _rows(ground, "exact", cases, dtype=ground.dtypes[0], quality=None)


async def measure_fast(ground: Ground) -> list[dict[str, Cell]]:
    """The fast mode, where this version has one."""
    if not QUALITIES:
        return []
    cases = [Case(side=ground.side, steps=steps) for steps in ground.steps]
    return await _rows(ground, "fast", cases, dtype=ground.dtypes[-1], quality="fast")


async def _rows(
    ground: Ground, way: str, cases: Sequence[Case], *, dtype: str, quality: str | None
) -> list[dict[str, Cell]]:
    rows = []
    with Readings() as readings:
        async with running_engine(spec(ground, dtype)) as (client, _):
            for case in cases:
                began = time.perf_counter()
                await draw(client, inputs(case, seed=0, quality=quality))
                first, hot = time.perf_counter() - began, time.perf_counter()
                phases: list[dict[str, float]] = []

                async def run(number: int, case: Case = case, phases: list[dict[str, float]] = phases) -> None:
                    done = await draw(client, inputs(case, seed=number + 1, quality=quality))
                    phases.append(done.timings_ms)

                seconds = await seconds_of_runs(run, seconds=ground.seconds)
                rows.append(
                    speed_row(
                        way,
                        case,
                        dtype=dtype,
                        first=first,
                        seconds=seconds,
                        phases=phases,
                        said=readings.since(hot),
                    )
                )
    return rows
