"""Calls of a generator and of the diffusers pipeline that is its reference. Imports torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fluxpool_worker.engine.generation import FluxGenerator
from fluxpool_worker.engine.generator import Pixels, Rendering
from fluxpool_worker.engine.protocol import GenerationInputs


def render(
    generator: FluxGenerator,
    inputs: GenerationInputs,
    *,
    on_step: Callable[[int, int], None] = lambda _step, _total: None,
    is_canceled: Callable[[], bool] = lambda: False,
) -> Rendering:
    return generator.generate(inputs, on_step=on_step, is_canceled=is_canceled)


def one_pipeline_call(generator_pipeline: Any, inputs: GenerationInputs, **more: Any) -> Pixels:
    """The reference: one call of the diffusers pipeline; its image as bytes. `more` are further arguments."""
    (images,) = generator_pipeline(
        prompt=inputs.prompt,
        negative_prompt=inputs.negative_prompt,
        true_cfg_scale=inputs.true_cfg_scale,
        guidance_scale=inputs.guidance,
        width=inputs.width,
        height=inputs.height,
        num_inference_steps=inputs.steps,
        generator=torch.Generator("cpu").manual_seed(inputs.seed),
        output_type="np",
        return_dict=False,
        **more,
    )
    pixels: Pixels = (images[0] * 255).round().astype(np.uint8)
    return pixels
