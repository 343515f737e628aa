"""Keys of LoRA files before diffusers converts them: spellings that it misses are brought to those that it reads.

diffusers 0.42 leaves out what it cannot convert, with a line in its log at most: the magnitudes of a DoRA, biases, the
alphas of FLUX's last layer, whatever has no prefix. A picture without them is another one, so here each key is kept,
folded into another, told of, or refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from fluxpool_worker.engine.generator import InputsError

DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"
TRANSFORMER: Final = "transformer."

_ORIGINAL: Final = "diffusion_model."
"""Prefix of the layers' names in Black Forest Labs' own code, as ComfyUI and ai-toolkit write it."""
_KOHYA_DOWN: Final = ".lora_down.weight"
_KOHYA_UP: Final = ".lora_up.weight"
_ALPHA: Final = ".alpha"
_TEXT_ENCODERS: Final = ("lora_te", "text_encoder", "bundle_emb.")
_RENAMED: Final = (
    # PEFT writes the adapter's name into keys, and a prefix of its own.
    (re.compile(r"\.(lora_[AB])\.[^.]+\.(weight|bias)$"), r".\1.\2"),
    (re.compile(r"^base_model\.model\."), ""),
    (
        re.compile(
            r"^(?=((single_)?transformer_blocks|x_embedder|context_embedder|time_text_embed|norm_out|proj_out)\.)"
        ),
        TRANSFORMER,
    ),
    # Not XLabs' `processor` keys, which diffusers knows without a prefix.
    (
        re.compile(r"^(?=((double|single)_blocks|(img|txt|time|vector|guidance)_in|final_layer)\.(?!.*\.processor\.))"),
        _ORIGINAL,
    ),
)
_NOT_LOW_RANK: Final = re.compile(
    r"\.(dora_scale|lora_magnitude_vector|diff|diff_b|lokr_\w+|hada_\w+|lora_mid\.weight)$"
)
_LAST_LAYER_ALPHA: Final = re.compile(r"^(lora_unet_|diffusion_model\.)final_layer[._].*\.alpha$")


@dataclass(frozen=True, slots=True)
class FileKeys:
    """What is left for diffusers' converters."""

    state: Mapping[str, torch.Tensor]
    layers: int
    """Pairs of matrices; the converters make one or more layers of each."""
    has_text_encoder: bool
    """Whether a part for a text encoder was left out."""


def convertible_keys(file: Mapping[str, torch.Tensor], *, name: str) -> FileKeys:
    """The file's tensors under keys that diffusers reads whole; raises `InputsError` for what no layer can be given."""
    state = {key: tensor for key, tensor in file.items() if not key.startswith(_TEXT_ENCODERS)}
    has_text_encoder = len(state) < len(file)
    for key, tensor in state.items():
        # Differences of biases and norms that are all zeros change nothing.
        if (found := _NOT_LOW_RANK.search(key)) and (not found[1].startswith("diff") or bool(tensor.any())):
            raise InputsError(f"loras: {name!r} has {key[:200]}; {found[1]} is no low-rank weight and is not applied")
    renamed = {_renamed(key): tensor for key, tensor in state.items() if not _NOT_LOW_RANK.search(key)}
    if any(key.startswith(TRANSFORMER) for key in renamed):
        # Some files have every layer twice, in both spellings.
        renamed = {key: tensor for key, tensor in renamed.items() if not key.startswith("lora_unet_")}
    state = _with_last_alphas(renamed)
    layers = sum(key.endswith((DOWN, _KOHYA_DOWN)) for key in state)
    return FileKeys(state=state, layers=layers, has_text_encoder=has_text_encoder)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    if key.startswith(_ORIGINAL):
        return key.replace(DOWN, _KOHYA_DOWN).replace(UP, _KOHYA_UP)
    if key.startswith(TRANSFORMER):
        return key.replace(_KOHYA_DOWN, DOWN).replace(_KOHYA_UP, UP)
    return key


def _with_last_alphas(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The alphas of the last layer in its matrices."""
    folded = {key: tensor for key, tensor in state.items() if not _LAST_LAYER_ALPHA.match(key)}
    for key in state.keys() - folded.keys():
        down = key.removesuffix(_ALPHA) + _KOHYA_DOWN
        if down in folded:
            matrix = folded[down].float()
            folded[down] = matrix * (state[key].float() / matrix.shape[0])
    return folded
