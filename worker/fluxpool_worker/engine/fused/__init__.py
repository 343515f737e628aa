"""The fused way of drawing: FLUX.1's transformer without torch.compile, at 93 to 95 % of a bare matrix product's speed.

`why_not_fused` tells whether a loaded pipeline can be drawn so, `fused_denoiser` makes it so. The recipe and what was
tried without gain are in docs/performance.md.
"""

from typing import Any

from fluxpool_worker.engine.fused.choice import why_not_fused
from fluxpool_worker.engine.fused.denoising import FusedDenoiser, Text

__all__ = ["FusedDenoiser", "Text", "fused_denoiser", "why_not_fused"]


def fused_denoiser(pipeline: Any) -> FusedDenoiser:
    """The fused way on a CUDA device; `why_not_fused` must be None."""
    # Triton looks for a driver when it is imported, which only workers with a GPU have.
    from fluxpool_worker.engine.fused.triton_operations import TritonOperations  # noqa: PLC0415

    return FusedDenoiser(pipeline, operations=TritonOperations())
