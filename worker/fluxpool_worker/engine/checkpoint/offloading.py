"""Weights in host memory, by diffusers' group offloading: blocks are copied to the device while others compute.

Decided from sizes alone, before anything is read. The way for GPUs of 24 GB, on which FLUX.1's transformer alone
(24 GB) does not fit, so that moving whole models to and fro (`enable_model_cpu_offload`) would not help.
"""

from pathlib import Path
from typing import Any, Final, assert_never

import torch

from fluxpool_worker.engine.checkpoint.weight_files import WEIGHTED_PARTS, weight_paths
from fluxpool_worker.engine.protocol import Device, EngineSpec, Offload

RESIDENT_PARTS: Final = ("text_encoder", "vae")
"""0.4 GB together."""
ROOM_BYTES: Final = 5 * 10**9
"""For what is beside the weights: buffers, a decode at 2048x2048, the CUDA context."""


def why_offload(spec: EngineSpec, folder: Path) -> str | None:
    """The reason to keep the weights in `folder` in host memory; None to keep them where they are computed with."""
    if spec.device is Device.CPU or not torch.cuda.is_available():
        return None
    return why_offload_from(spec.offload, folder, memory_bytes=torch.cuda.get_device_properties(0).total_memory)


def why_offload_from(offload: Offload, folder: Path, *, memory_bytes: int) -> str | None:
    """The same for a GPU with that much memory."""
    match offload:
        case Offload.NEVER:
            return None
        case Offload.ALWAYS:
            return "the pool asks for it"
        case Offload.AUTO:
            try:
                weights = [path.stat().st_size for part in WEIGHTED_PARTS for path in weight_paths(folder / part)]
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                # Loading reports what is wrong with the files.
                return None
            needed = sum(weights) + ROOM_BYTES
            if needed <= memory_bytes:
                return None
            return (
                f"the GPU has {memory_bytes / 1e9:.0f} GB of memory, and all weights on it need {needed / 1e9:.0f} GB"
            )
        case _:
            assert_never(offload)


def offload(pipeline: Any, device: torch.device) -> None:
    """Keep the transformer and T5 in pinned host memory, as large as they are, and the other parts on `device`.

    Results are those of resident weights. The transformer is copied once for every forward, T5 once for every text, and
    at most two blocks of it are on the device at a time.
    """
    from diffusers.hooks import apply_group_offloading  # noqa: PLC0415 - `why_offload` runs before diffusers is imported

    for part in RESIDENT_PARTS:
        getattr(pipeline, part).to(device)
    # With a stream the next block is copied while one computes.
    common = {"onload_device": device, "offload_device": torch.device("cpu"), "use_stream": device.type == "cuda"}
    apply_group_offloading(pipeline.transformer, offload_type="block_level", num_blocks_per_group=1, **common)
    # T5's blocks lie one level too deep to be found.
    apply_group_offloading(pipeline.text_encoder_2, offload_type="leaf_level", **common)
