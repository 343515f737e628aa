"""Attention of fast images where FlashAttention 3 is installed: on queries, keys and values in 8 bits.

An image of 1024x1024 takes 1.13 s with it on an H200 and 1.18 s with bfloat16. Queries and keys are in float8's range
as they are, because each head is normed; values have one scale a head.
"""

from functools import partial
from typing import Final

import structlog
import torch

from fluxpool_worker.engine.fused.attention import (
    Attention,
    attention,
    choose_attention,
    flash_attention_3,
    why_not_flash,
)
from fluxpool_worker.engine.fused.fast.operations import FLOAT8, FLOAT8_MAX, SMALLEST, ScaledOperations

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TOLERANCE: Final = 0.15
"""Of the difference to torch's answer in bfloat16, relative; 8 bits make 0.05."""
MOST_ROWS: Final = 5120
"""The error grows with the rows. Of a forward it is 0.107 instead of 0.091 at 1024x1024, but 0.171 instead of 0.088 at
1536x1536, and 0.27 at 2048x2048: above this number rows stay in bfloat16."""


def choose_fast_attention(operations: ScaledOperations, device: torch.device, *, head_width: int) -> Attention:
    """FlashAttention 3 in 8 bits where it works, else what is best in bfloat16; the log has the reason."""
    reason = why_not_flash(device, torch.bfloat16, head_width=head_width)
    attend = partial(scaled_flash_attention, operations)
    if reason is None:
        try:
            difference = difference_to_torch(attend, device, head_width=head_width)
        except (RuntimeError, TypeError) as error:
            reason = f"fa3-fwd does not work in 8 bits here ({type(error).__name__}: {error})"
        else:
            reason = None if difference < TOLERANCE else f"fa3-fwd in 8 bits differs from torch by {difference:.3f}"
    log.info("fast_attention_chosen", attention=None if reason else "flash-attention-3-float8", reason=reason)
    return choose_attention(device, torch.bfloat16, head_width=head_width) if reason else attend


def scaled_flash_attention(
    operations: ScaledOperations, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attend by FlashAttention 3, in 8 bits up to `MOST_ROWS`; see `Attention`. The answer is bfloat16."""
    if key.shape[0] > MOST_ROWS:
        return flash_attention_3(query, key, value)
    largest = torch.linalg.vector_norm(value, ord=torch.inf, dim=(0, 2), dtype=torch.float32)
    scales = largest.clamp_min(SMALLEST) / FLOAT8_MAX
    asked, known, told = (torch.empty(part.shape, device=part.device, dtype=FLOAT8) for part in (query, key, value))
    operations.scale_heads(query, scales=None, out=asked)
    operations.scale_heads(key, scales=None, out=known)
    operations.scale_heads(value, scales=scales, out=told)
    out = torch.empty(query.shape, device=query.device, dtype=torch.bfloat16)
    unscaled = torch.ones_like(scales)[None]
    torch.ops.fa3_fwd.fwd(
        asked[None],
        known[None],
        told[None],
        out=out[None],
        q_descale=unscaled,
        k_descale=unscaled,
        v_descale=scales[None],
        softmax_scale=query.shape[-1] ** -0.5,
        num_splits=1,
    )
    return out.view(query.shape[0], -1)


def difference_to_torch(attend: Attention, device: torch.device, *, head_width: int) -> float:
    """How far its answers are from torch's, relative, for values whose heads differ in size."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(3, 64, 8, head_width, device=device, generator=generator)
    rows[2] *= torch.logspace(-3, 3, 8, device=device)[:, None]
    query, key, value = rows.to(torch.bfloat16).unbind(0)
    by_head = [
        answer.view(64, 8, head_width).float() for answer in (attend(query, key, value), attention(query, key, value))
    ]
    found, wanted = by_head
    return float(((found - wanted).norm(dim=(0, 2)) / wanted.norm(dim=(0, 2))).max())
