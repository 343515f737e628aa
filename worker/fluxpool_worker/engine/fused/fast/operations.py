"""What the 8-bit products need beside `operations.Operations`, in plain torch; `triton_operations` overrides it.

Rows and weights are float8 e4m3 with one float32 scale a row: values of a row times its scale are what is meant. This
form rounds where the kernels round and nowhere else, and is what tests compare.
"""

from dataclasses import dataclass
from typing import Final

import torch

from fluxpool_worker.engine.fused.modulation import Modulation
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.weights import Linear

FLOAT8: Final = torch.float8_e4m3fn
FLOAT8_MAX: Final = 448.0
SMALLEST: Final = 1e-12
"""Of a row's largest magnitude: a row of zeros has a scale, too."""


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """Rows in 8 bits: values (rows, columns) and scales (rows)."""

    values: torch.Tensor
    scales: torch.Tensor

    def __getitem__(self, rows: slice) -> "ScaledRows":
        return ScaledRows(self.values[rows], self.scales[rows])


class ScaledOperations:
    """In plain torch. All tensors are rows of tokens, text rows first."""

    def add_norm_and_scale(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        out: ScaledRows,
        modulation: Modulation,
    ) -> None:
        """`Operations.add_and_norm` with 8-bit rows."""
        normed = torch.empty(stream.shape, device=stream.device)
        Operations().add_and_norm(
            stream=stream,
            update=update,
            out=normed,
            modulation=modulation,
        )
        _store(normed, out)

    def scale_rows(self, *, attended: torch.Tensor | None, hidden: torch.Tensor | None, out: ScaledRows) -> None:
        """`out = [attended | gelu(hidden)]`, or one of the two, with the tanh form of GELU."""
        parts = [] if attended is None else [attended.float()]
        if hidden is not None:
            parts.append(torch.nn.functional.gelu(hidden.float(), approximate="tanh"))
        _store(torch.cat(parts, dim=1), out)

    def scale_heads(self, heads: torch.Tensor, *, scales: torch.Tensor | None, out: torch.Tensor) -> None:
        """`out = heads / scales`, both (rows, heads, head width) with any stride between rows of `heads`.

        `scales` has one number a head. What exceeds the range of float8 is cut.
        """
        found = heads.float() if scales is None else heads.float() / scales[:, None]
        out.copy_(found.clamp(-FLOAT8_MAX, FLOAT8_MAX))

    def linear(self, rows: ScaledRows, layer: Linear, *, out: torch.Tensor) -> None:
        """`out = rows @ weight.T + bias`, summed in float32; `layer` has scales, and `out` is bfloat16."""
        assert layer.scales is not None  # noqa: S101 - what the weights' type cannot say
        sums = rows.values.float() @ layer.weight.float().t()
        out.copy_(sums * rows.scales[:, None] * layer.scales + layer.bias.float())


def scaled(values: torch.Tensor) -> ScaledRows:
    """The rows (rows, columns) in 8 bits."""
    found = values.float()
    scales = found.abs().amax(dim=1).clamp_min(SMALLEST) / FLOAT8_MAX
    # Rounding may exceed the range by a digit, and this format has no infinity to say so.
    return ScaledRows((found / scales[:, None]).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), scales)


def _store(values: torch.Tensor, out: ScaledRows) -> None:
    found = scaled(values)
    out.values.copy_(found.values)
    out.scales.copy_(found.scales)
