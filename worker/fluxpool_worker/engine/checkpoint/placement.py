"""Where the weights are kept: on the GPU, or in host memory from where blocks are copied when they are needed.

Decided from sizes alone, before anything is read. Needs torch alone, so that it can run before diffusers is imported.
"""

from pathlib import Path
from typing import Final, assert_never

import torch

from fluxpool_worker.engine.checkpoint.weight_files import WEIGHTED_PARTS, weight_paths
from fluxpool_worker.engine.protocol import Device, EngineSpec, Offload

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
