"""Where each block's modulation vectors lie in one long vector, and the vectors of all steps of a job.

FLUX modulates every norm by a linear function of time, guidance and the pooled text, none of which depends on the
picture. So all 77 layers run once for all steps of a job (4 ms for 28 steps) instead of in every forward (2 ms each).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

_DOUBLE_PARTS: Final = 6
"""Shift, scale and gate of attention, then of the feed-forward layer; once for the image and once for the text."""
_SINGLE_PARTS: Final = 3
"""Shift, scale, gate."""
_LAST_PARTS: Final = 2
"""Scale, shift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormVectors:
    """Where a norm's vectors begin: of its own scale and shift, and of the gate of what is added before it."""

    gate: int
    scale: int
    shift: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """Of the rows of a norm: the first `text_rows` by the vectors at `text`, the others by those at `image`."""

    vectors: torch.Tensor
    text_rows: int
    text: NormVectors
    image: NormVectors


@dataclass(frozen=True, slots=True)
class BlockVectors:
    """Where the vectors of one half of a block begin."""

    shift: int
    scale: int
    gate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleVectors:
    """Of one stream of a double block."""

    attention: BlockVectors
    feed_forward: BlockVectors


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulationLayout:
    """The order is that of the layers: double blocks (image, text), single blocks, the last norm."""

    width: int
    double_blocks: int
    single_blocks: int

    @property
    def length(self) -> int:
        """Of one step's vector."""
        parts = 2 * _DOUBLE_PARTS * self.double_blocks + _SINGLE_PARTS * self.single_blocks + _LAST_PARTS
        return parts * self.width

    def double_image(self, block: int) -> DoubleVectors:
        """Vectors of a double block's image rows."""
        return self._double(2 * _DOUBLE_PARTS * block)

    def double_text(self, block: int) -> DoubleVectors:
        """Vectors of a double block's text rows."""
        return self._double(2 * _DOUBLE_PARTS * block + _DOUBLE_PARTS)

    def single(self, block: int) -> BlockVectors:
        """Vectors of a single block."""
        return self._three(2 * _DOUBLE_PARTS * self.double_blocks + _SINGLE_PARTS * block)

    @property
    def last_scale(self) -> int:
        """Of the norm before the output layer."""
        return self.length - _LAST_PARTS * self.width

    @property
    def last_shift(self) -> int:
        """Of the norm before the output layer."""
        return self.length - self.width

    def _double(self, part: int) -> DoubleVectors:
        return DoubleVectors(attention=self._three(part), feed_forward=self._three(part + _SINGLE_PARTS))

    def _three(self, part: int) -> BlockVectors:
        return BlockVectors(part * self.width, (part + 1) * self.width, (part + 2) * self.width)


def modulation_vectors(
    transformer: Any, *, timesteps: torch.Tensor, guidance: float | None, pooled: torch.Tensor
) -> torch.Tensor:
    """The vectors of all steps, (steps, `ModulationLayout.length`).

    `timesteps` (steps) run from 1000 to 0 and stay float32, as does `guidance`: diffusers rounds both to the
    transformer's dtype, which in bfloat16 makes 828 of 830. `pooled` is (1, pooled width).
    """
    times = timesteps.to(device=pooled.device, dtype=torch.float32)
    scales = () if guidance is None else (torch.full_like(times, 1000.0 * guidance),)
    embedding = transformer.time_text_embed(times, *scales, pooled.expand(len(times), -1))
    activated = torch.nn.functional.silu(embedding)
    return torch.cat([layer(activated) for layer in _modulation_layers(transformer)], dim=1)


def _modulation_layers(transformer: Any) -> Iterator[Any]:
    for block in transformer.transformer_blocks:
        yield block.norm1.linear
        yield block.norm1_context.linear
    for block in transformer.single_transformer_blocks:
        yield block.norm.linear
    yield transformer.norm_out.linear
