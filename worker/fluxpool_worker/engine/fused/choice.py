"""Whether the fused forward covers a loaded pipeline, and if not, why. Decided once, when an engine starts.

The fused way is written for FLUX.1's transformer as diffusers 0.42 builds it. Whatever differs from that (other
classes, adapters, hooks, layers without bias) is left to diffusers, which is slower and correct.
"""

import importlib.util
import os
import shutil
from typing import Any, Final

import torch

MIN_CAPABILITY: Final = (8, 0)
"""bfloat16 in tensor cores; below, nothing was measured."""
DTYPES: Final = (torch.float16, torch.bfloat16)
HEADS_MULTIPLE: Final = 8
"""Heads that one program of the rotation treats."""


def why_not_fused(pipeline: Any) -> str | None:
    """The reason to leave a loaded `FluxPipeline` to diffusers; None when the fused way covers it."""
    return why_not_packed(pipeline) or _why_not_on_device(pipeline.transformer)


def why_not_packed(pipeline: Any) -> str | None:
    """The same without looking at the device: whether the modules are those that the fused forward computes."""
    transformer, config = pipeline.transformer, pipeline.transformer.config
    if type(transformer).__name__ != "FluxTransformer2DModel":
        return f"the transformer is a {type(transformer).__name__}"
    if type(pipeline.scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        return f"the scheduler is a {type(pipeline.scheduler).__name__}"
    schedule = pipeline.scheduler.config
    for name in ("stochastic_sampling", "invert_sigmas", "use_flow_sigmas"):
        if getattr(schedule, name, False):
            return f"the scheduler has {name}"
    if config.patch_size != 1:
        return f"the transformer has patch_size {config.patch_size}"
    if not transformer.transformer_blocks or not transformer.single_transformer_blocks:
        return "the transformer lacks blocks of one kind"
    return _why_not_layers(transformer)


def _why_not_layers(transformer: Any) -> str | None:
    for name, module in transformer.named_modules():
        if hasattr(module, "_hf_hook"):
            return f"{name or 'the transformer'} has a hook of accelerate, as with offloading"
        kind = type(module)
        if "Linear" in kind.__name__ and kind is not torch.nn.Linear:
            return f"{name} is a {kind.__module__}.{kind.__name__}"
        if kind is torch.nn.Linear and module.bias is None:
            return f"{name} has no bias"
        if kind.__name__ == "FluxAttention" and type(module.processor).__name__ != "FluxAttnProcessor":
            return f"{name} has a {type(module.processor).__name__}"
    dtypes = {parameter.dtype for parameter in transformer.parameters()}
    return None if len(dtypes) == 1 else f"the transformer has parameters of {len(dtypes)} dtypes"


def _why_not_on_device(transformer: Any) -> str | None:
    weight, config = transformer.x_embedder.weight, transformer.config
    if weight.device.type != "cuda":
        return f"the device is {weight.device.type}"
    if weight.dtype not in DTYPES:
        return f"the dtype is {str(weight.dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < MIN_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CC", ""), "gcc", "clang") if compiler):
        return "there is no C compiler, which Triton needs for the launchers of its kernels (gcc and libc's headers)"
    third, rest = divmod(transformer.inner_dim, 3)
    if rest or not _is_power_of_two(third):
        return f"the transformer's width {transformer.inner_dim} is not three times a power of two"
    if not _is_power_of_two(config.attention_head_dim) or config.num_attention_heads % HEADS_MULTIPLE:
        return f"the transformer has {config.num_attention_heads} heads of {config.attention_head_dim}"
    return None


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
