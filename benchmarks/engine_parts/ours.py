"""The engine as the worker runs it: its own process, jobs over its socket, image files back."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from report import Cell

from engine_parts.ground import NEGATIVE_PROMPT, PROMPT, TRUE_CFG_SCALE, Ground, seconds_of_runs
from engine_parts.readings import Readings
from engine_parts.speed import Case, speed_row
from fluxpool_contract.messages import Quality
from fluxpool_worker.agent.engine.client import EngineClient, EngineLimits, GenerationError
from fluxpool_worker.engine.protocol import Device, EngineSpec, FailureKind, Generated, GenerationInputs, Ready

LIMIT_SECONDS: Final = 300.0


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


def inputs(case: Case, *, seed: int, quality: Quality = Quality.EXACT) -> GenerationInputs:
    """A job; each case and seed has a prompt of its own, so that its text is encoded."""
    return GenerationInputs(
        prompt=f"{PROMPT}, {case}, {seed}",
        negative_prompt=f"{NEGATIVE_PROMPT}, {case}, {seed}" if case.guided else None,
        true_cfg_scale=TRUE_CFG_SCALE if case.guided else 1.0,
        width=case.side,
        height=case.side,
        steps=case.steps,
        seed=seed,
        quality=quality,
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
    return [row for dtype in ground.dtypes for row in await _rows(ground, Quality.EXACT, cases, dtype=dtype)]


async def measure_sizes(ground: Ground) -> list[dict[str, Cell]]:
    """The main case's steps at other sizes, in the default dtype."""
    cases = [Case(side=side, steps=ground.steps[0]) for side in ground.sides if side != ground.side]
    return await _rows(ground, Quality.EXACT, cases, dtype=ground.dtypes[0])


async def measure_fast(ground: Ground) -> list[dict[str, Cell]]:
    """The fast mode in every dtype; nothing where the engine refuses it."""
    cases = [Case(side=ground.side, steps=steps) for steps in ground.steps]
    try:
        return [row for dtype in ground.dtypes for row in await _rows(ground, Quality.FAST, cases, dtype=dtype)]
    except* GenerationError as refused:
        reason = refused.exceptions[0]
        if not isinstance(reason, GenerationError) or reason.kind is not FailureKind.INVALID:
            raise
        sys.stderr.write(f"no fast mode here: {reason}\n")
    return []


async def _rows(ground: Ground, quality: Quality, cases: Sequence[Case], *, dtype: str) -> list[dict[str, Cell]]:
    rows = []
    engine_spec = replace(spec(ground, dtype), qualities=tuple({Quality.EXACT, quality}))
    with Readings() as readings:
        async with running_engine(engine_spec) as (client, _):
            done: Generated | None = None
            for case, before in zip(cases, [None, *cases], strict=False):
                kernels, began = _kernels(), time.perf_counter()
                first: float | None = None
                if done is None or before is None or before.side != case.side:
                    done = await draw(client, inputs(case, seed=0, quality=quality))
                    first = time.perf_counter() - began
                hot = time.perf_counter()
                phases: list[dict[str, float]] = []

                async def run(number: int, case: Case = case, phases: list[dict[str, float]] = phases) -> None:
                    drawn = await draw(client, inputs(case, seed=number + 1, quality=quality))
                    phases.append(drawn.timings_ms)

                seconds = await seconds_of_runs(run, seconds=ground.seconds)
                rows.append(
                    speed_row(
                        f"{quality}, {done.path}",
                        case,
                        dtype=dtype,
                        first=first,
                        seconds=seconds,
                        phases=phases,
                        measured=readings.since(hot) | {"kernels_compiled": _kernels() - kernels},
                    )
                )
    return rows


def _kernels() -> int:
    """How many kernels Triton has compiled into its cache so far."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
