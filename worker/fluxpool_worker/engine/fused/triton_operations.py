"""The operations of the fused forward on a CUDA device: Triton kernels, and cuBLASLt's GELU epilogue."""

from typing import Final

import torch

from fluxpool_worker.engine.fused.choice import HEADS_MULTIPLE
from fluxpool_worker.engine.fused.kernels import add_and_norm_kernel, norm_and_rotate_kernel
from fluxpool_worker.engine.fused.modulation import Modulation
from fluxpool_worker.engine.fused.operations import EPSILON, Operations
from fluxpool_worker.engine.fused.weights import HeadNorms, Linear

NORM_WARPS: Final = 4


class TritonOperations(Operations):
    """Needs a width of three times a power of two and a head width that is one, as FLUX.1 has."""

    def add_and_norm(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        out: torch.Tensor,
        modulation: Modulation,
    ) -> None:
        """See `Operations`."""
        launch_add_and_norm(
            stream=stream,
            update=update,
            out=out,
            scales=None,
            modulation=modulation,
        )

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
        """See `Operations`."""
        rows, count, head_width = heads.shape
        norm_and_rotate_kernel[(rows, count // HEADS_MULTIPLE)](
            heads,
            norms.text,
            norms.image,
            cosine,
            sine,
            text_rows,
            first_row,
            heads.stride(0),
            EPSILON,
            HEADS=HEADS_MULTIPLE,
            HEAD_WIDTH=head_width,
            num_warps=1,
        )

    def linear_gelu(self, rows: torch.Tensor, layer: Linear, *, out: torch.Tensor) -> None:
        """See `Operations`; on CUDA this operator has the tanh form, on a CPU another."""
        torch.ops.aten._addmm_activation.out(layer.bias, rows, layer.weight.t(), use_gelu=True, out=out)  # noqa: SLF001


def launch_add_and_norm(
    *,
    stream: torch.Tensor,
    update: torch.Tensor | None,
    out: torch.Tensor,
    scales: torch.Tensor | None,
    modulation: Modulation,
) -> None:
    """`Operations.add_and_norm`; with `scales` (rows) the rows of `out` are in 8 bits."""
    rows, width = stream.shape
    vectors, text, image = modulation.vectors, modulation.text, modulation.image
    add_and_norm_kernel[(rows,)](
        stream,
        stream if update is None else update,
        out,
        vectors if scales is None else scales,
        vectors,
        modulation.text_rows,
        text.gate,
        text.scale,
        text.shift,
        image.gate,
        image.scale,
        image.shift,
        EPSILON,
        WIDTH=width,
        THIRD=width // 3,
        HAS_UPDATE=update is not None,
        IS_FLOAT16=scales is None and stream.dtype is torch.float16,
        IS_SCALED=scales is not None,
        num_warps=NORM_WARPS,
    )
