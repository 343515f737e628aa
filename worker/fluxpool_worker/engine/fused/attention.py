"""Attention of the fused forward: torch's own, or FlashAttention 3 where its wheel (`fa3-fwd`) is installed and fits.

The choice is made once, by trying; everything works without FlashAttention 3.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Final

import structlog
import torch

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values (rows, heads, head width) with any stride between rows to (query rows, width)."""

FLASH_CAPABILITY: Final = (9, 0)
"""FlashAttention 3 is written for Hopper's instructions."""
FLASH_MODULE: Final = "fa3_fwd"
TOLERANCE: Final = 0.02
"""Of the difference to torch's answer in bfloat16, relative; two correct ways differ by 0.003."""


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend by torch's own function. On sm_90 it takes cuDNN's kernel, which reads strided rows without copies."""
    asked, known, told = (heads.transpose(0, 1)[None] for heads in (query, key, value))
    found = torch.nn.functional.scaled_dot_product_attention(asked, known, told)
    return found[0].transpose(0, 1).reshape(query.shape[0], -1)


def flash_attention_3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend by FlashAttention 3, in bfloat16; `why_not_flash` must be None."""
    out = torch.empty(query.shape, device=query.device, dtype=query.dtype)
    torch.ops.fa3_fwd.fwd(
        query[None], key[None], value[None], out=out[None], softmax_scale=query.shape[-1] ** -0.5, num_splits=1
    )
    return out.view(query.shape[0], -1)


def choose_attention(device: torch.device, dtype: torch.dtype, *, head_width: int) -> Attention:
    """The faster one of those that work for rows of this dtype; the log has the reason."""
    reason = why_not_flash(device, dtype, head_width=head_width)
    name = "torch" if reason else "flash-attention-3"
    log.info("attention_chosen", attention=name, dtype=str(dtype).removeprefix("torch."), reason=reason)
    return attention if reason else flash_attention_3


def why_not_flash(device: torch.device, dtype: torch.dtype, *, head_width: int) -> str | None:
    """The reason not to use FlashAttention 3; None when it works."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if importlib.util.find_spec(FLASH_MODULE) is None:
        return "fa3-fwd is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability != FLASH_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and FlashAttention 3 needs 9.0"
    if dtype is not torch.bfloat16:
        return f"fa3-fwd has no kernels for {str(dtype).removeprefix('torch.')}"
    try:
        # Its import registers the operator.
        importlib.import_module(f"{FLASH_MODULE}._C")
        difference = _difference_of_flash(device, head_width)
    except (ImportError, OSError, AttributeError, RuntimeError, TypeError) as error:
        return f"fa3-fwd does not work here ({type(error).__name__}: {error})"
    return None if difference < TOLERANCE else f"fa3-fwd differs from torch by {difference:.3f}"


def _difference_of_flash(device: torch.device, head_width: int) -> float:
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(3, 64, 2, head_width, device=device, generator=generator).to(torch.bfloat16)
    query, key, value = rows.unbind(0)
    wanted = attention(query, key, value).float()
    return float((flash_attention_3(query, key, value).float() - wanted).norm() / wanted.norm())
