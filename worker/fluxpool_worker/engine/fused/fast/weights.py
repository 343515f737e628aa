"""8-bit copies of a transformer's block layers, beside the exact ones.

Those layers are 8.6 of FLUX.1's 11.9 billion weights and nearly all of its arithmetic. The layers around them, norms
and modulation stay as they are.
"""

from dataclasses import replace
from typing import Final

import torch

from fluxpool_worker.engine.fused.fast.operations import scaled
from fluxpool_worker.engine.fused.weights import DoubleBlock, HeadNorms, Linear, PackedWeights, SingleBlock, Streams

ROWS_DTYPE: Final = torch.bfloat16
"""Of the rows between the products: row-wise scaled products give nothing else on every GPU (pytorch/ao#2431)."""


def scale_weights(exact: PackedWeights) -> PackedWeights:
    """The weights with block layers in 8 bits, each row with a scale: 9 GB of device memory for FLUX.1."""
    return replace(
        exact,
        first=_rounded(exact.first),
        last=_rounded(exact.last),
        double_blocks=tuple(map(_double, exact.double_blocks)),
        single_blocks=tuple(map(_single, exact.single_blocks)),
    )


def _double(block: DoubleBlock) -> DoubleBlock:
    return DoubleBlock(
        query_key_value=_streams(block.query_key_value),
        output=_streams(block.output),
        up=_streams(block.up),
        down=_streams(block.down),
        norms=_norms(block.norms),
    )


def _single(block: SingleBlock) -> SingleBlock:
    return SingleBlock(
        query_key_value=_scaled(block.query_key_value),
        up=_scaled(block.up),
        output=_scaled(block.output),
        norms=_norms(block.norms),
    )


def _streams(layers: Streams) -> Streams:
    return Streams(text=_scaled(layers.text), image=_scaled(layers.image))


def _scaled(layer: Linear) -> Linear:
    rows = scaled(layer.weight.detach())
    return Linear(weight=rows.values, bias=layer.bias.detach().to(ROWS_DTYPE), scales=rows.scales)


def _rounded(layer: Linear) -> Linear:
    return Linear(weight=layer.weight.detach().to(ROWS_DTYPE), bias=layer.bias.detach().to(ROWS_DTYPE))


def _norms(norms: HeadNorms) -> HeadNorms:
    return HeadNorms(text=norms.text.to(ROWS_DTYPE), image=norms.image.to(ROWS_DTYPE))
