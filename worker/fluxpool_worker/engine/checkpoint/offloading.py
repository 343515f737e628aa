"""Weights in host memory, by diffusers' group offloading: blocks are copied to the device while others compute.

The way for GPUs of 24 GB, on which FLUX.1's transformer alone (24 GB) does not fit, so that moving whole models to and
fro (`enable_model_cpu_offload`) would not help.
"""

from typing import Any, Final

import torch
from diffusers.hooks import apply_group_offloading

RESIDENT_PARTS: Final = ("text_encoder", "vae")
"""0.4 GB together."""


def offload(pipeline: Any, device: torch.device) -> None:
    """Keep the transformer and T5 in pinned host memory, as large as they are, and the other parts on `device`.

    Results are those of resident weights. The transformer is copied once for every forward, T5 once for every text, and
    at most two blocks of it are on the device at a time.
    """
    for part in RESIDENT_PARTS:
        getattr(pipeline, part).to(device)
    # With a stream the next block is copied while one computes.
    common = {"onload_device": device, "offload_device": torch.device("cpu"), "use_stream": device.type == "cuda"}
    apply_group_offloading(pipeline.transformer, offload_type="block_level", num_blocks_per_group=1, **common)
    # T5's blocks lie one level too deep to be found.
    apply_group_offloading(pipeline.text_encoder_2, offload_type="leaf_level", **common)
