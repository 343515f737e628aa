"""What the fused VAE decoder does between its convolutions, in plain torch and by Triton kernels."""

from typing import Any, Final

import torch

PROGRAMS: Final = 132 * 8
"""Of the kernel that sums: eight for each multiprocessor of an H200."""
ELEMENTS_PER_TILE: Final = 4096


class DecoderOperations:
    """In plain torch: float32 inside, one rounding at the end.

    Tensors are (1, channels, height, width) or (1, channels, pixels), with the channels innermost in memory.
    """

    def group_norm(
        self, x: torch.Tensor, norm: torch.nn.GroupNorm, *, silu: bool, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`norm(x + added)`, with SiLU behind it when asked for; `added` is (channels)."""
        values = x.float() if added is None else x.float() + _over_pixels(added, x)
        found = torch.nn.functional.group_norm(
            values, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps
        )
        return (torch.nn.functional.silu(found) if silu else found).to(x.dtype)

    def add_residual(
        self, x: torch.Tensor, residual: torch.Tensor, *, bias: torch.Tensor, residual_bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`x + bias + residual + residual_bias`; biases are (channels)."""
        total = x.float() + _over_pixels(bias, x) + residual.float()
        if residual_bias is not None:
            total = total + _over_pixels(residual_bias, x)
        return total.to(x.dtype)


class TritonDecoderOperations(DecoderOperations):
    """The same on a CUDA device; channels must be a power of two, as FLUX's VAE has them."""

    def __init__(self) -> None:
        """Import the kernels, which looks for Triton's driver."""
        from fluxpool_worker.engine.fused import decoder_kernels  # noqa: PLC0415 - only workers with a GPU have one

        self._kernels: Any = decoder_kernels

    def group_norm(
        self, x: torch.Tensor, norm: torch.nn.GroupNorm, *, silu: bool, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `DecoderOperations`."""
        values = _channels_last(x)
        pixels, channels = values.numel() // x.shape[1], x.shape[1]
        rows = _rows(channels)
        per_program = _ceil(_ceil(pixels, min(PROGRAMS, _ceil(pixels, rows))), rows) * rows
        programs = _ceil(pixels, per_program)
        sums = torch.empty(programs, 2, channels, device=x.device, dtype=torch.float32)
        self._kernels.channel_sums_kernel[(programs,)](
            values,
            values if added is None else added,
            sums,
            pixels,
            per_program,
            CHANNELS=channels,
            ROWS=rows,
            HAS_ADDED=added is not None,
            num_warps=8,
        )
        factor, offset = torch.empty(2, channels, device=x.device, dtype=torch.float32)
        group = channels // norm.num_groups
        self._kernels.group_factors_kernel[(norm.num_groups,)](
            sums,
            norm.weight,
            norm.bias,
            norm.bias if added is None else added,
            factor,
            offset,
            programs,
            pixels * group,
            norm.eps,
            CHANNELS=channels,
            GROUP=group,
            STEP=128,
            HAS_ADDED=added is not None,
            num_warps=4,
        )
        out = torch.empty_like(values)
        self._kernels.scale_channels_kernel[(_ceil(pixels, rows),)](
            values, out, factor, offset, pixels, CHANNELS=channels, ROWS=rows, SILU=silu, num_warps=8
        )
        return _channels_second(out)

    def add_residual(
        self, x: torch.Tensor, residual: torch.Tensor, *, bias: torch.Tensor, residual_bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `DecoderOperations`."""
        values, other = _channels_last(x), _channels_last(residual)
        out = torch.empty_like(values)
        channels = x.shape[1]
        pixels, rows = values.numel() // channels, _rows(channels)
        self._kernels.add_residual_kernel[(_ceil(pixels, rows),)](
            values,
            other,
            out,
            bias,
            bias if residual_bias is None else residual_bias,
            pixels,
            CHANNELS=channels,
            ROWS=rows,
            HAS_RESIDUAL_BIAS=residual_bias is not None,
            num_warps=8,
        )
        return _channels_second(out)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """With the channels as the last axis and contiguous: a view of what is channels_last already."""
    return x.movedim(1, -1).contiguous()


def _channels_second(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-1, 1)


def _over_pixels(channels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return channels.float().view(-1, *[1] * (x.ndim - 2))


def _rows(channels: int) -> int:
    return max(1, ELEMENTS_PER_TILE // channels)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
