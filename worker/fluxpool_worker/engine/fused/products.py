"""The matrix products of the fused forward and the rows that they hand on, for one token count.

A protocol, and its exact form in the weights' own dtype; `fast.products` is the 8-bit one. Knows nothing of blocks.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from fluxpool_worker.engine.fused.modulation import Modulation
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.weights import Linear, PackedWeights, Streams


class Products(Protocol):
    """Every `rows` is a slice of the sequence with a start and a stop, and `out` begins at the first of them."""

    def add_and_norm(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        modulation: Modulation,
    ) -> None:
        """`Operations.add_and_norm` of all rows; the products read what it leaves."""

    def last_norm(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor,
        modulation: Modulation,
    ) -> torch.Tensor:
        """The same of image rows alone, given and returned in the dtype of the stream."""

    def from_norm(self, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        """`out = layer(normed rows)`."""

    def expand(self, layer: Linear, *, rows: slice) -> None:
        """The hidden rows: GELU of `layer(normed rows)`."""

    def from_hidden(self, layers: Streams, *, out: torch.Tensor) -> None:
        """`out = layer(hidden rows)`, each stream by its own layer."""

    def from_attention(self, attended: torch.Tensor, layers: Streams, *, out: torch.Tensor) -> None:
        """`out = layer(attended)`, each stream by its own layer."""

    def from_both(self, attended: torch.Tensor, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        """`out = layer([attended | hidden rows])`; `attended` has these rows alone."""


ProductsOf = Callable[[PackedWeights, int, int], Products]
"""From the weights and the numbers of text and image rows."""


class ExactProducts:
    """Products in the weights' dtype, with GELU in the epilogue."""

    def __init__(self, weights: PackedWeights, text_rows: int, image_rows: int, *, operations: Operations) -> None:
        """Allocate the rows between the products."""
        self._operations, self._text_rows = operations, text_rows
        rows, width = text_rows + image_rows, weights.width
        self._normed = torch.empty(rows, width, device=weights.device, dtype=weights.dtype)
        self._hidden = torch.empty(rows, 4 * width, device=weights.device, dtype=weights.dtype)

    def add_and_norm(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        modulation: Modulation,
    ) -> None:
        """See `Products`."""
        self._operations.add_and_norm(
            stream=stream,
            update=update,
            out=self._normed,
            modulation=modulation,
        )

    def last_norm(self, *, stream: torch.Tensor, update: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """See `Products`."""
        out = self._normed[self._text_rows :]
        self._operations.add_and_norm(stream=stream, update=update, out=out, modulation=modulation)
        return out

    def from_norm(self, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        """See `Products`."""
        linear(self._normed[rows], layer, out=out)

    def expand(self, layer: Linear, *, rows: slice) -> None:
        """See `Products`."""
        self._operations.linear_gelu(self._normed[rows], layer, out=self._hidden[rows])

    def from_hidden(self, layers: Streams, *, out: torch.Tensor) -> None:
        """See `Products`."""
        self._both(self._hidden, layers, out=out)

    def from_attention(self, attended: torch.Tensor, layers: Streams, *, out: torch.Tensor) -> None:
        """See `Products`."""
        self._both(attended, layers, out=out)

    def from_both(self, attended: torch.Tensor, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        """See `Products`; two products that accumulate instead of one over a concatenation."""
        width = attended.shape[1]
        # The larger product first: 0.5 to 1 ms a forward faster than the other order.
        torch.addmm(layer.bias, self._hidden[rows], layer.weight[:, width:].t(), out=out)
        out.addmm_(attended, layer.weight[:, :width].t())

    def _both(self, rows: torch.Tensor, layers: Streams, *, out: torch.Tensor) -> None:
        split = self._text_rows
        linear(rows[split:], layers.image, out=out[split:])
        linear(rows[:split], layers.text, out=out[:split])


def linear(rows: torch.Tensor, layer: Linear, *, out: torch.Tensor) -> None:
    """`out = layer(rows)`."""
    # `out` must be contiguous, as slices of rows are: torch leaves cuBLASLt's epilogue otherwise.
    torch.addmm(layer.bias, rows, layer.weight.t(), out=out)
