"""The operations of the 8-bit products on a CUDA device: Triton kernels, and torch's row-wise scaled product."""

import torch

from fluxpool_worker.engine.fused.choice import HEADS_MULTIPLE
from fluxpool_worker.engine.fused.fast.kernels import scale_heads_kernel, scale_rows_kernel
from fluxpool_worker.engine.fused.fast.operations import ScaledOperations, ScaledRows
from fluxpool_worker.engine.fused.modulation import Modulation
from fluxpool_worker.engine.fused.triton_operations import launch_add_and_norm
from fluxpool_worker.engine.fused.weights import Linear

HIDDEN_WARPS = 8
ATTENDED_WARPS = 4


class TritonScaledOperations(ScaledOperations):
    """Needs a width of three times a power of two."""

    def add_norm_and_scale(
        self,
        *,
        stream: torch.Tensor,
        update: torch.Tensor | None,
        out: ScaledRows,
        modulation: Modulation,
    ) -> None:
        """See `ScaledOperations`."""
        launch_add_and_norm(
            stream=stream,
            update=update,
            out=out.values,
            scales=out.scales,
            modulation=modulation,
        )

    def scale_rows(self, *, attended: torch.Tensor | None, hidden: torch.Tensor | None, out: ScaledRows) -> None:
        """See `ScaledOperations`; attended and hidden rows lie behind one another."""
        rows, columns = out.values.shape
        parts = (3 if attended is not None else 0) + (12 if hidden is not None else 0)
        scale_rows_kernel[(rows,)](
            out.values if attended is None else attended,
            out.values if hidden is None else hidden,
            out.values,
            out.scales,
            HAS_ATTENDED=attended is not None,
            HAS_HIDDEN=hidden is not None,
            THIRD=columns // parts,
            IS_APPROXIMATE=out.values.device.type != "cpu",
            num_warps=ATTENDED_WARPS if hidden is None else HIDDEN_WARPS,
        )

    def scale_heads(self, heads: torch.Tensor, *, scales: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `ScaledOperations`."""
        rows, count, head_width = heads.shape
        scale_heads_kernel[(rows, count // HEADS_MULTIPLE)](
            heads,
            out,
            out if scales is None else scales,
            heads.stride(0),
            count,
            HAS_SCALES=scales is not None,
            HEADS=HEADS_MULTIPLE,
            HEAD_WIDTH=head_width,
            num_warps=ATTENDED_WARPS,
        )

    def linear(self, rows: ScaledRows, layer: Linear, *, out: torch.Tensor) -> None:
        """See `ScaledOperations`; sums are rounded on the way as the tensor cores do it, which is twice as fast."""
        assert layer.scales is not None  # noqa: S101 - what the weights' type cannot say
        torch.ops.aten._scaled_mm.out(  # noqa: SLF001 - its public form has no output
            rows.values,
            layer.weight.t(),
            rows.scales[:, None],
            layer.scales[None, :],
            layer.bias,
            None,
            out.dtype,
            True,  # noqa: FBT003 - positional in torch's schema: fast accumulation
            out=out,
        )
