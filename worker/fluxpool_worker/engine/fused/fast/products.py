"""The fused forward's products in 8 bits: rows are scaled where a kernel writes them, never in a pass of their own.

Only attention's answer is scaled on its own, before the output layer.
"""

from typing import Final

import torch

from fluxpool_worker.engine.fused.fast.operations import FLOAT8, ScaledOperations, ScaledRows
from fluxpool_worker.engine.fused.modulation import Modulation
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.weights import Linear, PackedWeights, Streams

ROWS_MULTIPLE: Final = 16
FEWEST_ROWS: Final = 512
"""cuBLASLt refuses row-wise scaled products of few rows, and how few depends on the columns (pytorch/ao#4582): 16 rows
of 12,288 columns were refused on an H200, 512 never."""


class ScaledProducts:
    """See `Products`; the layers have scales."""

    def __init__(
        self,
        weights: PackedWeights,
        text_rows: int,
        image_rows: int,
        *,
        operations: Operations,
        scaled_operations: ScaledOperations,
    ) -> None:
        """Allocate the rows between the products: 0.3 GB at 1024x1024."""
        self._plain, self._operations, self._text_rows = operations, scaled_operations, text_rows
        rows, width = text_rows + image_rows, weights.width
        # What is padded reads on behind its last row.
        room, device, dtype = rows + FEWEST_ROWS, weights.device, weights.dtype
        self._all, self._width = slice(0, rows), width
        self._normed = ScaledRows(_bytes(room, width, device), torch.zeros(room, device=device))
        self._hidden = torch.empty(rows, 4 * width, device=device, dtype=dtype)
        self._handed_on = _bytes(room, 5 * width, device)
        self._scales = torch.zeros(room, device=device)
        self._last = torch.empty(image_rows, width, device=device, dtype=dtype)
        self._padded = torch.empty(0, device=device, dtype=dtype)

    def add_and_norm(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        modulation: Modulation,
    ) -> None:
        """See `Products`."""
        self._operations.add_norm_and_scale(
            stream=stream,
            update=update,
            out=self._normed[self._all],
            modulation=modulation,
        )

    def last_norm(self, *, stream: torch.Tensor, update: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """See `Products`."""
        self._plain.add_and_norm(stream=stream, update=update, out=self._last, modulation=modulation)
        return self._last

    def from_norm(self, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        """See `Products`."""
        self._linear(self._normed, layer, rows=rows, out=out)

    def expand(self, layer: Linear, *, rows: slice) -> None:
        """See `Products`; GELU follows where the rows are scaled."""
        self._linear(self._normed, layer, rows=rows, out=self._hidden[rows])

    def from_hidden(self, layers: Streams, *, out: torch.Tensor) -> None:
        """See `Products`."""
        hidden = self._rows(4 * self._width)
        self._operations.scale_rows(attended=None, hidden=self._hidden, out=hidden[self._all])
        self._both(hidden, layers, out=out)

    def from_attention(self, attended: torch.Tensor, layers: Streams, *, out: torch.Tensor) -> None:
        """See `Products`."""
        found = self._rows(self._width)
        self._operations.scale_rows(attended=attended, hidden=None, out=found[self._all])
        self._both(found, layers, out=out)

    def from_both(self, attended: torch.Tensor, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        """See `Products`; one product over both, as these have no form that accumulates."""
        found = self._rows(5 * self._width)
        self._operations.scale_rows(attended=attended, hidden=self._hidden[rows], out=found[rows])
        self._linear(found, layer, rows=rows, out=out)

    def _rows(self, columns: int) -> ScaledRows:
        """Room for rows that the next product reads: all three kinds share it."""
        room = self._scales.shape[0]
        return ScaledRows(self._handed_on.view(-1)[: room * columns].view(room, columns), self._scales)

    def _both(self, rows: ScaledRows, layers: Streams, *, out: torch.Tensor) -> None:
        image, text = slice(self._text_rows, self._all.stop), slice(0, self._text_rows)
        self._linear(rows, layers.image, rows=image, out=out[image])
        self._linear(rows, layers.text, rows=text, out=out[text])

    def _linear(self, found: ScaledRows, layer: Linear, *, rows: slice, out: torch.Tensor) -> None:
        count = rows.stop - rows.start
        padded = max(FEWEST_ROWS, -(-count // ROWS_MULTIPLE) * ROWS_MULTIPLE)
        found = found[rows.start : rows.start + padded]
        if padded == count:
            self._operations.linear(found, layer, out=out)
            return
        columns = layer.weight.shape[0]
        if self._padded.numel() < padded * columns:
            self._padded = out.new_empty(padded * columns)
        product = self._padded[: padded * columns].view(padded, columns)
        self._operations.linear(found, layer, out=product)
        out.copy_(product[:count])


def _bytes(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(rows, columns, device=device, dtype=torch.uint8).view(FLOAT8)
