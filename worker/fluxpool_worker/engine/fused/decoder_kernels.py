"""Triton kernels of the fused VAE decoder: group norm and residual sums over pixels with their channels side by side.

torch's group norm takes half of a decode at 1024x1024 (one block a group), and copies what is channels_last. What they
compute says `decoder_operations.DecoderOperations`; X is always (pixels, channels).

Triton compiles a kernel again when a number becomes 1 or a multiple of 16. Numbers that depend on the image's size are
exempt (`do_not_specialize`): the smallest image, generated at the start, compiles every kernel.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pixels", "pixels_per_program"])
def channel_sums_kernel(
    X, ADDED, SUMS, pixels, pixels_per_program, CHANNELS: tl.constexpr, ROWS: tl.constexpr, HAS_ADDED: tl.constexpr
):
    """Sums and sums of squares of each channel over the pixels of one program; SUMS is (programs, 2, channels)."""
    program = tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    if HAS_ADDED:
        added = tl.load(ADDED + channel).to(tl.float32)
    end = tl.minimum((program + 1) * pixels_per_program, pixels)
    for start in range(program * pixels_per_program, end, ROWS):
        rows = start + row
        inside = (rows < end)[:, None]
        x = tl.load(X + rows.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        if HAS_ADDED:
            x = tl.where(inside, x + added[None, :], 0.0)
        sums += x
        squares += x * x
    tl.store(SUMS + program * 2 * CHANNELS + channel, tl.sum(sums, axis=0))
    tl.store(SUMS + program * 2 * CHANNELS + CHANNELS + channel, tl.sum(squares, axis=0))


@triton.jit(do_not_specialize=["programs", "count"])
def group_factors_kernel(
    SUMS,
    WEIGHT,
    BIAS,
    ADDED,
    FACTOR,
    OFFSET,
    programs,
    count,
    epsilon,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    STEP: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """One group of GROUP channels a program: the norm is x * FACTOR + OFFSET. In float64: differences cancel."""
    channel = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    row = tl.arange(0, STEP)
    sums = tl.zeros((STEP, GROUP), tl.float64)
    squares = tl.zeros((STEP, GROUP), tl.float64)
    for start in range(0, programs, STEP):
        rows = start + row
        inside = (rows < programs)[:, None]
        at = rows[:, None] * 2 * CHANNELS + channel[None, :]
        sums += tl.load(SUMS + at, mask=inside, other=0.0).to(tl.float64)
        squares += tl.load(SUMS + at + CHANNELS, mask=inside, other=0.0).to(tl.float64)
    mean = tl.sum(tl.sum(sums, axis=0), axis=0) / count
    variance = tl.sum(tl.sum(squares, axis=0), axis=0) / count - mean * mean
    inverse = 1.0 / tl.sqrt(tl.maximum(variance, 0.0).to(tl.float32) + epsilon)
    factor = inverse * tl.load(WEIGHT + channel).to(tl.float32)
    offset = tl.load(BIAS + channel).to(tl.float32) - mean.to(tl.float32) * factor
    if HAS_ADDED:
        offset += tl.load(ADDED + channel).to(tl.float32) * factor
    tl.store(FACTOR + channel, factor)
    tl.store(OFFSET + channel, offset)


@triton.jit(do_not_specialize=["pixels"])
def scale_channels_kernel(
    X, OUT, FACTOR, OFFSET, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr
):
    """OUT = x * FACTOR + OFFSET, then SiLU."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    inside = (rows < pixels)[:, None]
    at = rows.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.load(FACTOR + channel)[None, :] + tl.load(OFFSET + channel)[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(OUT + at, y.to(OUT.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pixels"])
def add_residual_kernel(
    X,
    RESIDUAL,
    OUT,
    BIAS,
    RESIDUAL_BIAS,
    pixels,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL_BIAS: tl.constexpr,
):
    """OUT = x + bias + residual + residual's bias."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    inside = (rows < pixels)[:, None]
    at = rows.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32) + tl.load(BIAS + channel).to(tl.float32)[None, :]
    x += tl.load(RESIDUAL + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL_BIAS:
        x += tl.load(RESIDUAL_BIAS + channel).to(tl.float32)[None, :]
    tl.store(OUT + at, x.to(OUT.dtype.element_ty), mask=inside)
