"""The noise levels of a job's steps, from diffusers' own scheduler (0.42). Both ways of denoising follow them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps that are run."""

    unshifted: NDArray[np.float64]
    """(steps): what diffusers' pipelines take as `sigmas`, and shift themselves."""
    sigmas: tuple[float, ...]
    """(steps + 1): share of noise before each step, and 0 after the last."""
    times: torch.Tensor
    """(steps): on the CPU."""


def schedule_of(scheduler: Any, *, steps: int, tokens: int, run: int) -> Schedule:
    """The last `run` of `steps` for an image of so many tokens.

    As in `FluxImg2ImgPipeline`, whose sigmas are shifted one by one, so that leaving the first out changes no other.
    """
    config = scheduler.config
    shift = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    unshifted = np.linspace(1.0, 1 / steps, steps)[steps - run :]
    times, _ = retrieve_timesteps(scheduler, run, "cpu", sigmas=unshifted, mu=shift)
    return Schedule(unshifted=unshifted, sigmas=tuple(float(sigma) for sigma in scheduler.sigmas), times=times)
