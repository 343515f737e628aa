"""The families of models that engines support: defaults, limits and licences."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final


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
    publisher: str
    """Of the weights, by its name on the Hugging Face hub."""
    published: date
    """When the weights were."""
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
    publisher="black-forest-labs",
    published=date(2024, 8, 1),
    text_tokens=512,
)
KREA: Final = Family(
    name="FLUX.1-Krea-dev",
    licence=NON_COMMERCIAL,
    default_steps=28,
    max_steps=100,
    default_guidance=4.5,
    publisher="black-forest-labs",
    published=date(2025, 7, 31),
    text_tokens=512,
)
SCHNELL: Final = Family(
    name="FLUX.1-schnell",
    licence=APACHE,
    default_steps=4,
    max_steps=50,
    default_guidance=None,
    publisher="black-forest-labs",
    published=date(2024, 8, 1),
    text_tokens=256,
)
"""Distilled to 1 to 4 steps and 256 tokens of text (its model card)."""
TINY: Final = Family(
    name="tiny",
    licence=APACHE,
    default_steps=DEV.default_steps,
    max_steps=DEV.max_steps,
    default_guidance=DEV.default_guidance,
    publisher="fluxpool",
    published=DEV.published,
    text_tokens=DEV.text_tokens,
)
"""Random weights of `tiny_checkpoint`, which are this project's own."""

PUBLISHED: Final = (DEV, KREA, SCHNELL)
FAMILIES: Final[Mapping[str, Family]] = {family.name: family for family in (*PUBLISHED, TINY)}


def published_family(model_id: str) -> Family | None:
    """The family whose weights have this id on the Hugging Face hub; None for any other checkpoint."""
    return next((family for family in PUBLISHED if model_id == f"{family.publisher}/{family.name}"), None)
