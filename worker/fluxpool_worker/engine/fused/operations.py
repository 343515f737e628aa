"""What the fused forward does between its products, in plain torch; `triton_operations` overrides it with kernels.

This form runs on every device and is what tests compare: it rounds where the kernels round and nowhere else.
"""

from typing import Final

import torch

from fluxpool_worker.engine.fused.modulation import Modulation
from fluxpool_worker.engine.fused.weights import HeadNorms, Linear

EPSILON: Final = 1e-6
"""Of every norm in FLUX's transformer (diffusers' transformer_flux.py)."""
FLOAT16_MAX: Final = 65504.0


class Operations:
    """Everything that is no plain matrix product, in plain torch. All tensors are rows of tokens, text rows first."""

    def add_and_norm(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        out: torch.Tensor,
        modulation: Modulation,
    ) -> None:
        """`stream += gate * update`, then `out = layer_norm(stream) * (1 + scale) + shift`.

        `stream`, `update` and `out` are (rows, width); without `update` the stream stays as it is. In float16 the
        stream is kept within the dtype's range, as in diffusers.
        """
        width, vectors, text_rows = stream.shape[1], modulation.vectors, modulation.text_rows
        for rows, where in ((slice(0, text_rows), modulation.text), (slice(text_rows, None), modulation.image)):
            if update is not None:
                gate = vectors[where.gate : where.gate + width].float()
                total = stream[rows].float() + gate * update[rows].float()
                if stream.dtype is torch.float16:
                    total = total.clamp(-FLOAT16_MAX, FLOAT16_MAX)
                stream[rows] = total
            scale = vectors[where.scale : where.scale + width].float()
            shift = vectors[where.shift : where.shift + width].float()
            normed = torch.nn.functional.layer_norm(stream[rows].float(), (width,), eps=EPSILON)
            out[rows] = (normed * (1 + scale) + shift).to(out.dtype)

    def norm_and_rotate(
        self,
        heads: torch.Tensor,
        *,
        norms: HeadNorms,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        first_row: int,
        text_rows: int,
    ) -> None:
        """RMS norm of each head, then rotary position embedding over pairs of neighbours, in place.

        `heads` is (rows, any number of heads, head width), row 0 being row `first_row` of the sequence; `norms` has a
        row for each of its heads. `cosine` and `sine` are (sequence, head width / 2) in float32.
        """
        found = heads.float()
        scaled = found * torch.rsqrt(found.square().mean(dim=-1, keepdim=True) + EPSILON)
        split = max(0, text_rows - first_row)
        scaled[:split] *= norms.text.float()
        scaled[split:] *= norms.image.float()
        real, imaginary = scaled.view(*scaled.shape[:-1], -1, 2).unbind(-1)
        at = slice(first_row, first_row + heads.shape[0])
        cosine, sine = cosine[at, None], sine[at, None]
        rotated = torch.stack((real * cosine - imaginary * sine, imaginary * cosine + real * sine), dim=-1)
        heads.copy_(rotated.flatten(-2))

    def linear_gelu(self, rows: torch.Tensor, layer: Linear, *, out: torch.Tensor) -> None:
        """`out = gelu(rows @ weight.T + bias)` with the tanh form of GELU."""
        torch.addmm(layer.bias, rows, layer.weight.t(), out=out)
        out.copy_(torch.nn.functional.gelu(out, approximate="tanh"))
