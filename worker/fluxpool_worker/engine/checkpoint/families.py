"""The models that an engine supports: how each is recognised, its defaults and limits, and its licence. No torch.

Published checkpoints say by the class in `model_index.json` what pipeline they are for; FLUX.1-dev, -schnell and
-Krea-dev share one, and are told apart by the transformer's config and by the checkpoint's name. A fine-tune counts to
the model whose shape it has.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PIPELINE_CLASS: Final = "FluxPipeline"
TINY_MARKER: Final = "fluxpool_tiny.json"
"""A file of tiny checkpoints alone, which must never be taken for published weights, nor these for a tiny one."""
LATENT_CHANNELS: Final = 64
"""Of the transformer's input. Control (128) and Fill (384) read an image beside the latents."""


class ForeignModelError(ValueError):
    """The checkpoint is of no known family; the message names it and the known ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """The terms of a family's published weights; a fine-tune may have further ones."""

    name: str
    """The SPDX identifier where there is one."""
    url: str
    commercial: bool

    def __str__(self) -> str:
        """One line, such as `Apache-2.0`."""
        return self.name if self.commercial else f"{self.name} (non-commercial), {self.url}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What all checkpoints of one kind have in common."""

    name: str
    licence: Licence
    default_steps: int
    max_steps: int
    default_guidance: float | None
    """None: the transformer has no guidance embedding, and `guidance` no effect."""
    text_tokens: int
    """What T5 reads. Fixed: padding takes part in attention, so another length gives another picture."""


APACHE: Final = Licence(
    name="Apache-2.0",
    url="https://github.com/black-forest-labs/flux/blob/main/model_licenses/LICENSE-FLUX1-schnell",
    commercial=True,
)
NON_COMMERCIAL: Final = Licence(
    name="FLUX.1 [dev] Non-Commercial License",
    url="https://github.com/black-forest-labs/flux/blob/main/model_licenses/LICENSE-FLUX1-dev",
    commercial=False,
)

DEV: Final = Family(
    name="FLUX.1-dev",
    licence=NON_COMMERCIAL,
    default_steps=28,
    max_steps=100,
    default_guidance=3.5,
    text_tokens=512,
)
KREA: Final = Family(
    name="FLUX.1-Krea-dev",
    licence=NON_COMMERCIAL,
    default_steps=28,
    max_steps=100,
    default_guidance=4.5,
    text_tokens=512,
)
SCHNELL: Final = Family(
    name="FLUX.1-schnell",
    licence=APACHE,
    default_steps=4,
    max_steps=50,
    default_guidance=None,
    text_tokens=256,
)
"""Distilled to 1 to 4 steps and 256 tokens of text (its model card)."""
TINY: Final = Family(
    name="tiny",
    licence=APACHE,
    default_steps=DEV.default_steps,
    max_steps=DEV.max_steps,
    default_guidance=DEV.default_guidance,
    text_tokens=DEV.text_tokens,
)
"""Random weights of `tiny_checkpoint`, which are this project's own."""

PUBLISHED: Final = (DEV, KREA, SCHNELL)
FAMILIES: Final[Mapping[str, Family]] = {family.name: family for family in (*PUBLISHED, TINY)}
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
