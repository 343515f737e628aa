"""The two Triton kernels of the fused forward, one program a row; arithmetic in float32, one rounding at the end.

Each reads and writes its rows once, at the speed of a copy. What they compute says `operations.Operations`.
"""

import triton
import triton.language as tl


@triton.jit
def scale_of(largest):
    """What a row is divided by, from its largest magnitude; 448 is the largest number of float8 e4m3."""
    return tl.maximum(largest, 1e-12) / 448.0


@triton.jit
def within_float8(x):
    """Rounding may exceed the range by a digit, and float8 e4m3 has no infinity to say so."""
    return tl.minimum(tl.maximum(x, -448.0), 448.0)


@triton.jit
def _modulated(x, VECTORS, scale, shift):
    return x * (1.0 + tl.load(VECTORS + scale).to(tl.float32)) + tl.load(VECTORS + shift).to(tl.float32)


@triton.jit
def add_and_norm_kernel(
    STREAM,
    UPDATE,
    OUT,
    SCALES,
    VECTORS,
    text_rows,
    text_gate,
    text_scale,
    text_shift,
    image_gate,
    image_scale,
    image_shift,
    epsilon,
    WIDTH: tl.constexpr,
    THIRD: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    IS_FLOAT16: tl.constexpr,
    IS_SCALED: tl.constexpr,
):
    """WIDTH is 3 * THIRD, because Triton's ranges are powers of two: a row is three of them.

    IS_SCALED: OUT is float8 e4m3, and its rows times SCALES are the norm.
    """
    row = tl.program_id(0)
    is_text = row < text_rows
    gate = tl.where(is_text, text_gate, image_gate)
    scale = tl.where(is_text, text_scale, image_scale)
    shift = tl.where(is_text, text_shift, image_shift)
    at = tl.arange(0, THIRD)
    base = row.to(tl.int64) * WIDTH
    x0 = tl.load(STREAM + base + at).to(tl.float32)
    x1 = tl.load(STREAM + base + THIRD + at).to(tl.float32)
    x2 = tl.load(STREAM + base + 2 * THIRD + at).to(tl.float32)
    if HAS_UPDATE:
        x0 += tl.load(VECTORS + gate + at).to(tl.float32) * tl.load(UPDATE + base + at).to(tl.float32)
        x1 += tl.load(VECTORS + gate + THIRD + at).to(tl.float32) * tl.load(UPDATE + base + THIRD + at).to(tl.float32)
        x2 += tl.load(VECTORS + gate + 2 * THIRD + at).to(tl.float32) * tl.load(UPDATE + base + 2 * THIRD + at).to(
            tl.float32
        )
        if IS_FLOAT16:
            x0 = tl.minimum(tl.maximum(x0, -65504.0), 65504.0)
            x1 = tl.minimum(tl.maximum(x1, -65504.0), 65504.0)
            x2 = tl.minimum(tl.maximum(x2, -65504.0), 65504.0)
        rounded0 = x0.to(STREAM.dtype.element_ty)
        rounded1 = x1.to(STREAM.dtype.element_ty)
        rounded2 = x2.to(STREAM.dtype.element_ty)
        tl.store(STREAM + base + at, rounded0)
        tl.store(STREAM + base + THIRD + at, rounded1)
        tl.store(STREAM + base + 2 * THIRD + at, rounded2)
        x0 = rounded0.to(tl.float32)
        x1 = rounded1.to(tl.float32)
        x2 = rounded2.to(tl.float32)
    mean = tl.sum(x0 + x1 + x2, axis=0) / WIDTH
    x0 -= mean
    x1 -= mean
    x2 -= mean
    variance = tl.sum(x0 * x0 + x1 * x1 + x2 * x2, axis=0) / WIDTH
    inverse = 1.0 / tl.sqrt(variance + epsilon)
    x0 = _modulated(x0 * inverse, VECTORS, scale + at, shift + at)
    x1 = _modulated(x1 * inverse, VECTORS, scale + THIRD + at, shift + THIRD + at)
    x2 = _modulated(x2 * inverse, VECTORS, scale + 2 * THIRD + at, shift + 2 * THIRD + at)
    if IS_SCALED:
        largest = tl.max(tl.maximum(tl.maximum(tl.abs(x0), tl.abs(x1)), tl.abs(x2)), axis=0)
        row_scale = scale_of(largest)
        tl.store(SCALES + row, row_scale)
        inverse_scale = 1.0 / row_scale
        x0 = within_float8(x0 * inverse_scale)
        x1 = within_float8(x1 * inverse_scale)
        x2 = within_float8(x2 * inverse_scale)
    tl.store(OUT + base + at, x0.to(OUT.dtype.element_ty))
    tl.store(OUT + base + THIRD + at, x1.to(OUT.dtype.element_ty))
    tl.store(OUT + base + 2 * THIRD + at, x2.to(OUT.dtype.element_ty))


@triton.jit
def norm_and_rotate_kernel(
    COLUMNS,
    TEXT_NORMS,
    IMAGE_NORMS,
    COSINE,
    SINE,
    text_rows,
    first_row,
    row_stride,
    epsilon,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
):
    """The grid is (rows, groups of HEADS heads); in place."""
    row = tl.program_id(0)
    first_head = tl.program_id(1) * HEADS
    HALF: tl.constexpr = HEAD_WIDTH // 2
    at = tl.arange(0, HEAD_WIDTH)
    heads = first_head + tl.arange(0, HEADS)
    places = COLUMNS + row.to(tl.int64) * row_stride + heads[:, None] * HEAD_WIDTH + at[None, :]
    value = tl.load(places).to(tl.float32)
    weights = heads[:, None] * HEAD_WIDTH + at[None, :]
    if row + first_row < text_rows:
        weight = tl.load(TEXT_NORMS + weights).to(tl.float32)
    else:
        weight = tl.load(IMAGE_NORMS + weights).to(tl.float32)
    mean_square = tl.sum(value * value, axis=1) / HEAD_WIDTH
    value = value * (1.0 / tl.sqrt(mean_square + epsilon))[:, None] * weight
    pairs = (row + first_row) * HALF + tl.arange(0, HALF)
    cosine = tl.load(COSINE + pairs)[None, :]
    sine = tl.load(SINE + pairs)[None, :]
    real, imaginary = tl.split(tl.reshape(value, (HEADS, HALF, 2)))
    rotated = tl.join(real * cosine - imaginary * sine, imaginary * cosine + real * sine)
    tl.store(places, tl.reshape(rotated, (HEADS, HEAD_WIDTH)).to(COLUMNS.dtype.element_ty))
