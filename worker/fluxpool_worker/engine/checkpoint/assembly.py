"""A `FluxPipeline` from weights that are on the device already, equal to what `from_pretrained` builds.

Modules are built without memory of their own and take the tensors over. Covers FLUX.1's parts as diffusers 0.42 and
transformers 5 build them; for anything else `why_not_assembled` has the reason, and `from_pretrained` loads it.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

CLASSES: Final[Mapping[str, type]] = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}
UNUSUAL: Final = ("quantization_config", "auto_map")
"""Entries of a part's config that change how its weights are read."""


class AssemblyError(Exception):
    """The weights do not fit the modules; the message says how. `from_pretrained` may still load them."""


def why_not_assembled(folder: Path) -> str | None:
    """The reason to leave a checkpoint to `from_pretrained`; None when `assemble` covers it."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for part, kind in CLASSES.items():
        found = (index.get(part) or [None, None])[1]
        if found != kind.__name__:
            return f"{part} is a {found}"
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        unusual = [name for name in UNUSUAL if name in config]
        if unusual:
            return f"{part} has a {unusual[0]}"
    return None


def assemble(
    folder: Path,
    tensors: Mapping[str, dict[str, torch.Tensor]],
    *,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
) -> Any:
    """A pipeline on `device`, each part in its dtype. Empties `tensors`.

    Raises `AssemblyError`.
    """
    modules = {part: _module(folder / part, part, tensors[part], dtype=dtypes[part], device=device) for part in CLASSES}
    return FluxPipeline.from_pretrained(str(folder), **modules, local_files_only=True, use_safetensors=True)


def _module(
    folder: Path, part: str, tensors: dict[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
) -> Any:
    # Buffers are computed, not stored, so they are made for real.
    with init_empty_weights(include_buffers=False):
        module = _empty(folder, part)
    float32 = _kept_in_float32(module, dtype)
    # One by one, so that a tensor's memory is free again before the next one is cast.
    state = {name: tensors.pop(name).to(torch.float32 if float32(name) else dtype) for name in tuple(tensors)}
    found = module.load_state_dict(state, strict=False, assign=True)
    if found.unexpected_keys:
        unknown = found.unexpected_keys
        raise AssemblyError(f"{part}/ has {len(unknown)} unknown weights, such as {unknown[0]}")
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing:
        raise AssemblyError(f"{part}/ lacks {len(missing)} weights, such as {missing[0]}")
    return module.to(device).eval()


def _empty(folder: Path, part: str) -> Any:
    match part:
        case "text_encoder":
            return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
        case "text_encoder_2":
            return T5EncoderModel(T5Config.from_pretrained(folder))
        case _:
            kind: Any = CLASSES[part]
            return kind.from_config(kind.load_config(folder))


def _kept_in_float32(module: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps a weight in float32 whatever was asked for: T5's `wo` overflows in float16."""
    names = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16:
        names |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if not names or dtype is torch.float32:
        return lambda _name: False
    pattern = re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, sorted(names)))})(?:\.|$)")
    return lambda name: pattern.search(name) is not None
