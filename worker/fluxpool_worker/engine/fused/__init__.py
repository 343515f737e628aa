"""FLUX.1's fused transformer forward without torch.compile, at 93 to 95 % of a bare matrix product's speed.

`why_not_fused` tells whether a loaded pipeline is covered, `fuse` prepares it, and `add_fast` its lossy way. The VAE's
decoder follows when it is FLUX's.
"""

from typing import Any

import torch

from fluxpool_worker.engine.fused.attention import choose_attention
from fluxpool_worker.engine.fused.choice import why_not_fused
from fluxpool_worker.engine.fused.decoder import fuse_decoder, why_not_fused_decoder
from fluxpool_worker.engine.fused.decoder_operations import TritonDecoderOperations
from fluxpool_worker.engine.fused.denoising import FusedDenoiser

__all__ = ["FusedDenoiser", "add_fast", "fuse", "why_not_fused"]


def fuse(pipeline: Any) -> FusedDenoiser:
    """The fused way on a CUDA device, where `why_not_fused` is None; changes the pipeline's VAE in place."""
    # Triton looks for a driver when it is imported, which only workers with a GPU have.
    from fluxpool_worker.engine.fused.triton_operations import TritonOperations  # noqa: PLC0415

    if why_not_fused_decoder(pipeline.vae) is None:
        fuse_decoder(pipeline.vae, operations=TritonDecoderOperations())
    transformer = pipeline.transformer
    attend = choose_attention(transformer.device, transformer.dtype, head_width=transformer.config.attention_head_dim)
    return FusedDenoiser(pipeline, operations=TritonOperations(), attend=attend)


def add_fast(fused: FusedDenoiser, pipeline: Any) -> str | None:
    """Let it generate fast images, too; else the reason why it cannot. `pipeline` is the one that it was made of."""
    # See `fuse`.
    from fluxpool_worker.engine.fused.fast.attention import choose_fast_attention  # noqa: PLC0415
    from fluxpool_worker.engine.fused.fast.choice import why_not_fast  # noqa: PLC0415
    from fluxpool_worker.engine.fused.fast.triton_operations import TritonScaledOperations  # noqa: PLC0415

    device = pipeline.transformer.device
    if reason := why_not_fast(device):
        return reason
    operations, head_width = TritonScaledOperations(), pipeline.transformer.config.attention_head_dim
    attend = choose_fast_attention(operations, device, head_width=head_width)
    try:
        fused.add_fast(operations, attend=attend)
    except torch.OutOfMemoryError as error:
        reason = f"its 8-bit weights do not fit into the GPU's memory: {error}"
    # Outside the handler, whose traceback still holds the tensors that are to be freed.
    if reason:
        torch.cuda.empty_cache()
    return reason
