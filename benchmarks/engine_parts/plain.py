"""The plain way: diffusers' whole pipeline in one dtype, one call an image, Pillow's PNG, as a first script does it."""

import io
import time
from typing import Any

import torch
from diffusers import FluxPipeline
from report import Cell

from engine_parts.ground import NEGATIVE_PROMPT, PROMPT, TRUE_CFG_SCALE, Ground, free_device_memory, seconds_of_runs
from engine_parts.readings import Readings
from engine_parts.speed import Case, speed_row


def load(ground: Ground, dtype: str) -> Any:
    """The pipeline on the ground's device."""
    pipeline = FluxPipeline.from_pretrained(
        str(ground.model),
        dtype=getattr(torch, dtype),
        device_map=None if ground.is_tiny else ground.device,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, case: Case, *, seed: int) -> bytes:
    """One image as a PNG file."""
    guided = {"negative_prompt": NEGATIVE_PROMPT, "true_cfg_scale": TRUE_CFG_SCALE} if case.guided else {}
    image = pipeline(
        f"{PROMPT}, {seed}",
        num_inference_steps=case.steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        width=case.side,
        height=case.side,
        **guided,
    ).images[0]
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


async def measure(ground: Ground) -> list[dict[str, Cell]]:
    """All cases in the first dtype, the main one in the others."""
    rows = []
    for dtype in ground.plain_dtypes:
        cases = [Case(side=ground.side, steps=ground.steps[0])]
        if dtype == ground.plain_dtypes[0]:
            cases += [Case(side=ground.side, steps=steps) for steps in ground.steps[1:]]
            cases += [Case(side=side, steps=ground.steps[0]) for side in ground.sides if side != ground.side]
        with Readings() as readings:
            pipeline = load(ground, dtype)
            rows += [await _row(ground, pipeline, case, dtype=dtype, readings=readings) for case in cases]
        del pipeline
        free_device_memory()
    return rows


async def _row(ground: Ground, pipeline: Any, case: Case, *, dtype: str, readings: Readings) -> dict[str, Cell]:
    began, first = time.perf_counter(), None
    if case.steps == ground.steps[0]:  # the others are drawn at a size that is warm
        draw(pipeline, case, seed=0)
        first = time.perf_counter() - began
    hot = time.perf_counter()

    async def run(number: int) -> None:
        draw(pipeline, case, seed=number + 1)

    seconds = await seconds_of_runs(run, seconds=ground.seconds)
    measured = readings.since(hot) | {"kernels_compiled": None}
    return speed_row("plain", case, dtype=dtype, first=first, seconds=seconds, phases=[], measured=measured)
