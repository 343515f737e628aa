"""What is in a LoRA's file: for each layer two thin matrices, whose product is added to its weight.

diffusers converts the formats of trainers (kohya, XLabs, PEFT, its own) to one; this reads that one. The scale of a
layer is alpha / rank as PEFT applies it (peft `tuners/lora/layer.py`, `scaling`). What cannot be merged into a linear
layer's weight (DoRA, LoKr, biases, norms) is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FluxPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open

from fluxpool_worker.engine.generator import InputsError
from fluxpool_worker.engine.lora.file_keys import DOWN, TRANSFORMER, UP, convertible_keys

_CONFIG: Final = "lora_adapter_metadata"
"""Key of the adapter's configuration in a file's metadata, as diffusers writes it."""

TEXT_ENCODER_IGNORED: Final = "lora {name}: its part for the text encoder is not applied"


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one layer's weight: `scale * up @ down`."""

    down: torch.Tensor
    """(rank, inputs)."""
    up: torch.Tensor
    """(outputs, rank)."""
    scale: float


@dataclass(frozen=True, slots=True)
class LoraContent:
    """All of a file."""

    changes: Mapping[str, LowRank]
    """By the layer's name in the transformer."""
    warnings: tuple[str, ...]


def read_lora(path: Path, *, name: str) -> LoraContent:
    """The content of a safetensors file; raises `InputsError` with `name` for what is no LoRA of FLUX.1."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: _computable(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            config = json.loads((file.metadata() or {}).get(_CONFIG, "{}"))
        keys = convertible_keys(tensors, name=name)
        state, alphas = FluxPipeline.lora_state_dict(dict(keys.state), return_alphas=True)
        if not any(DOWN in key for key in state):
            state = convert_unet_state_dict_to_peft(state)
        changes = _changes(state, _Scales(alphas or {}, config), name=name)
    except InputsError:
        raise
    except (
        # The converters' own checks of shapes and keys, and patterns in a file's configuration, too.
        AssertionError,
        ArithmeticError,
        re.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
        SafetensorError,
    ) as error:
        raise InputsError(
            f"loras: {name!r} cannot be read as a LoRA of FLUX.1 ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if len(changes) < keys.layers:
        raise InputsError(f"loras: {name!r} can be read in part only: {len(changes)} of {keys.layers} layers")
    warnings = (TEXT_ENCODER_IGNORED.format(name=name),) if keys.has_text_encoder else ()
    return LoraContent(changes=changes, warnings=warnings)


def _computable(tensor: torch.Tensor) -> torch.Tensor:
    """8-bit floats, with which torch cannot multiply, in bfloat16, which has all their values."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _changes(state: Mapping[str, torch.Tensor], scales: "_Scales", *, name: str) -> dict[str, LowRank]:
    downs: dict[str, torch.Tensor] = {}
    ups: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        # The converter gives layers outside the blocks no prefix.
        if key.endswith(DOWN):
            downs[key.removeprefix(TRANSFORMER).removesuffix(DOWN)] = tensor
        elif key.endswith(UP):
            ups[key.removeprefix(TRANSFORMER).removesuffix(UP)] = tensor
        else:
            raise InputsError(f"loras: {name!r} has {key[:200]}, which is no low-rank weight of a FLUX.1 transformer")
    if not downs or downs.keys() != ups.keys():
        half = sorted(downs.keys() ^ ups.keys())
        raise InputsError(f"loras: {name!r} has {f'only one half of {half[0][:200]}' if half else 'no weights'}")
    changes: dict[str, LowRank] = {}
    for layer, down in downs.items():
        up = ups[layer]
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise InputsError(f"loras: {name!r}: the shapes of {layer[:200]} do not fit each other: {shapes}")
        if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
            raise InputsError(f"loras: {name!r}: {layer[:200]} holds numbers that are not finite")
        changes[layer] = LowRank(down=down, up=up, scale=scales.of(layer, rank=down.shape[0], name=name))
    return changes


class _Scales:
    """alpha / rank of each layer, by a file's alphas or by the adapter's config in its metadata; 1 with neither."""

    def __init__(self, alphas: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self._alphas = {
            key.removeprefix(TRANSFORMER).split(".lora_A.")[0].removesuffix(".alpha"): float(value)
            for key, value in alphas.items()
        }
        self._config = {
            key.removeprefix(TRANSFORMER): value for key, value in metadata.items() if key.startswith(TRANSFORMER)
        }

    def of(self, layer: str, *, rank: int, name: str) -> float:
        alpha = float(rank)
        if self._alphas:
            if layer not in self._alphas:
                raise InputsError(f"loras: {name!r} has alphas, but none for {layer[:200]}")
            alpha = self._alphas[layer]
        elif self._config:
            patterns = self._config.get("alpha_pattern") or {}
            matching = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
            alpha = float(next(matching, self._config.get("lora_alpha", rank)))
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
