"""FLUX.1's fused transformer forward without torch.compile, at 93 to 95 % of a bare matrix product's speed.

`why_not_fused` tells whether a loaded pipeline is covered, `fuse` prepares it. The VAE's decoder follows when it
is FLUX's.
"""

from typing import Any

from fluxpool_worker.engine.fused.choice import why_not_fused
from fluxpool_worker.engine.fused.decoder import fuse_decoder, why_not_fused_decoder
from fluxpool_worker.engine.fused.decoder_operations import TritonDecoderOperations
from fluxpool_worker.engine.fused.denoising import FusedDenoiser

__all__ = ["FusedDenoiser", "fuse", "why_not_fused"]


def fuse(pipeline: Any) -> FusedDenoiser:
    """The fused way on a CUDA device, where `why_not_fused` is None; changes the pipeline's VAE in place."""
    # Triton looks for a driver when it is imported, which only workers with a GPU have.
    from fluxpool_worker.engine.fused.triton_operations import TritonOperations  # noqa: PLC0415

    if why_not_fused_decoder(pipeline.vae) is None:
        fuse_decoder(pipeline.vae, operations=TritonDecoderOperations())
    return FusedDenoiser(pipeline, operations=TritonOperations())
