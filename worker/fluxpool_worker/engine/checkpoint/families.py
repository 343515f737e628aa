"""How an engine recognises the family of a checkpoint; what families there are is the contract's. No torch.

Published checkpoints say by the class in `model_index.json` what pipeline they are for; FLUX.1-dev, -schnell and
-Krea-dev share one, and are told apart by the transformer's config and by the checkpoint's name. A fine-tune counts to
the model whose shape it has.
"""

import json
from pathlib import Path
from typing import Final

from fluxpool_contract.families import DEV, KREA, PUBLISHED, SCHNELL, TINY, Family

PIPELINE_CLASS: Final = "FluxPipeline"
TINY_MARKER: Final = "fluxpool_tiny.json"
"""A file of tiny checkpoints alone, which must never be taken for published weights, nor these for a tiny one."""
LATENT_CHANNELS: Final = 64
"""Of the transformer's input. Control (128) and Fill (384) read an image beside the latents."""


class ForeignModelError(ValueError):
    """The checkpoint is of no known family; the message names it and the known ones."""


SUPPORTED: Final = f"{', '.join(family.name for family in PUBLISHED)} and their fine-tunes, as {PIPELINE_CLASS}"


def check_pipeline(index: object) -> None:
    """Raise `ForeignModelError` unless a `model_index.json` with this content is that of a known family."""
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found != PIPELINE_CLASS:
        raise ForeignModelError(f"names the pipeline {str(found)[:100]!r}, which is not supported; use {SUPPORTED}")


def family_of(folder: Path, *, name: str | None = None) -> Family:
    """The family of a `FluxPipeline` checkpoint in a folder; `name` is the model's where it is not the folder's.

    Raises `ForeignModelError`, and `OSError` or `ValueError` for a config that cannot be read.
    """
    transformer = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    if not isinstance(transformer, dict):
        raise ValueError("transformer/config.json holds no object")  # noqa: TRY004 - a fault of the file
    kind, channels = transformer.get("_class_name"), transformer.get("in_channels", LATENT_CHANNELS)
    if kind != "FluxTransformer2DModel":
        raise ForeignModelError(f"has the transformer {str(kind)[:100]!r}, which is not supported; use {SUPPORTED}")
    if channels != LATENT_CHANNELS:
        raise ForeignModelError(
            f"has a transformer of {channels} input channels instead of {LATENT_CHANNELS}, as FLUX.1's Fill and "
            f"Control models have, which are not supported; use {SUPPORTED}"
        )
    if not transformer.get("guidance_embeds", False):
        return SCHNELL
    if (folder / TINY_MARKER).is_file():
        return TINY
    # Its config is FLUX.1-dev's to the last number.
    return KREA if "krea" in (name or folder.name).lower() else DEV
