"""The weights of a FLUX transformer as the fused forward reads them. No arithmetic but the packing.

Query, key and value of each block become one matrix, once; the diffusers module's own parameters turn into views of
it, so that both ways of generating share one copy of the weights. Weights that change afterwards (by a LoRA, for
example) must change in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer's weight (outputs, inputs) and bias (outputs)."""

    weight: torch.Tensor
    bias: torch.Tensor
    scales: torch.Tensor | None = None
    """Of the rows of an 8-bit weight (outputs), float32: the weight is `weight * scales[:, None]`."""

    def outputs(self, which: slice) -> "Linear":
        """The layer of some of its outputs; a view."""
        return Linear(self.weight[which], self.bias[which], None if self.scales is None else self.scales[which])


@dataclass(frozen=True, slots=True)
class Streams:
    """The layer that text rows go through, and the one for image rows."""

    text: Linear
    image: Linear


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights of the RMS norms over queries and then keys, a row a head: (2 * heads, head width)."""

    text: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleBlock:
    """A block in which text and image have weights of their own."""

    query_key_value: Streams
    output: Streams
    up: Streams
    down: Streams
    norms: HeadNorms


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleBlock:
    """A block in which both share all weights, with attention and feed-forward side by side."""

    query_key_value: Linear
    up: Linear
    output: Linear
    """Its first `width` columns read attention, the other 4 * `width` the feed-forward layer."""
    norms: HeadNorms


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """All blocks of one transformer, and the module that holds the layers around them."""

    transformer: Any
    """A diffusers `FluxTransformer2DModel`."""
    first: Linear
    """From latents to the residual stream."""
    last: Linear
    """From the last norm to the velocity."""
    double_blocks: tuple[DoubleBlock, ...]
    single_blocks: tuple[SingleBlock, ...]

    @property
    def width(self) -> int:
        """Columns of the residual stream."""
        return int(self.transformer.inner_dim)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.transformer.config.num_attention_heads)

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows between the products."""
        return self.first.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.first.weight.device


def pack_weights(transformer: Any) -> PackedWeights:
    """Pack a diffusers `FluxTransformer2DModel`; it keeps working."""
    return PackedWeights(
        transformer=transformer,
        first=_linear(transformer.x_embedder),
        last=_linear(transformer.proj_out),
        double_blocks=tuple(_double(block) for block in transformer.transformer_blocks),
        single_blocks=tuple(_single(block) for block in transformer.single_transformer_blocks),
    )


def _double(block: Any) -> DoubleBlock:
    attention = block.attn
    return DoubleBlock(
        query_key_value=Streams(
            text=_joined((attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)),
            image=_joined((attention.to_q, attention.to_k, attention.to_v)),
        ),
        output=Streams(text=_linear(attention.to_add_out), image=_linear(attention.to_out[0])),
        up=Streams(text=_linear(block.ff_context.net[0].proj), image=_linear(block.ff.net[0].proj)),
        down=Streams(text=_linear(block.ff_context.net[2]), image=_linear(block.ff.net[2])),
        norms=HeadNorms(
            text=_by_head(attention.norm_added_q, attention.norm_added_k, heads=attention.heads),
            image=_by_head(attention.norm_q, attention.norm_k, heads=attention.heads),
        ),
    )


def _single(block: Any) -> SingleBlock:
    attention = block.attn
    norms = _by_head(attention.norm_q, attention.norm_k, heads=attention.heads)
    return SingleBlock(
        query_key_value=_joined((attention.to_q, attention.to_k, attention.to_v)),
        up=_linear(block.proj_mlp),
        output=_linear(block.proj_out),
        norms=HeadNorms(text=norms, image=norms),
    )


def _linear(module: Any) -> Linear:
    return Linear(weight=module.weight, bias=module.bias)


def _by_head(query: Any, key: Any, *, heads: int) -> torch.Tensor:
    return torch.cat([norm.weight.detach().expand(heads, -1) for norm in (query, key)]).contiguous()


def _joined(modules: Sequence[Any]) -> Linear:
    """One layer of several, which keep working as views of it."""
    weight = torch.cat([module.weight.detach() for module in modules])
    bias = torch.cat([module.bias.detach() for module in modules])
    start = 0
    for module in modules:
        end = start + module.weight.shape[0]
        module.weight = torch.nn.Parameter(weight[start:end], requires_grad=False)
        module.bias = torch.nn.Parameter(bias[start:end], requires_grad=False)
        start = end
    return Linear(weight=weight, bias=bias)
