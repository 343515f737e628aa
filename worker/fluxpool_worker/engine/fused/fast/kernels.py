"""The Triton kernels that scale rows behind attention and the feed-forward layer, and heads before attention.

One program a row, or some heads of one. GELU and scaling in one pass take 3.8 ms of a forward at 1024x1024 on an H200;
with exp and a division for each number they took 5.7.
"""

import triton
import triton.language as tl

from fluxpool_worker.engine.fused.kernels import scale_of, within_float8


@triton.jit
def _gelu(x, IS_APPROXIMATE: tl.constexpr):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    if IS_APPROXIMATE:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [inner], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        tanh = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * inner))
    return 0.5 * x * (1.0 + tanh)


@triton.jit
def scale_rows_kernel(
    ATTENDED,
    HIDDEN,
    OUT,
    SCALES,
    HAS_ATTENDED: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    THIRD: tl.constexpr,
    IS_APPROXIMATE: tl.constexpr,
):
    """A row is [attended, 3 * THIRD | gelu(hidden), 12 * THIRD] in ranges that are powers of two."""
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = 3 * THIRD if HAS_ATTENDED else 0
    HIDDEN_WIDTH: tl.constexpr = 12 * THIRD if HAS_HIDDEN else 0
    two = tl.arange(0, 2 * THIRD)
    one = tl.arange(0, THIRD)
    eight = tl.arange(0, 8 * THIRD)
    four = tl.arange(0, 4 * THIRD)
    largest = 0.0
    if HAS_ATTENDED:
        a0 = tl.load(ATTENDED + row * WIDTH + two).to(tl.float32)
        a1 = tl.load(ATTENDED + row * WIDTH + 2 * THIRD + one).to(tl.float32)
        largest = tl.maximum(tl.max(tl.abs(a0), axis=0), tl.max(tl.abs(a1), axis=0))
    if HAS_HIDDEN:
        h0 = _gelu(tl.load(HIDDEN + row * HIDDEN_WIDTH + eight).to(tl.float32), IS_APPROXIMATE)
        h1 = _gelu(tl.load(HIDDEN + row * HIDDEN_WIDTH + 8 * THIRD + four).to(tl.float32), IS_APPROXIMATE)
        largest = tl.maximum(largest, tl.maximum(tl.max(tl.abs(h0), axis=0), tl.max(tl.abs(h1), axis=0)))
    scale = scale_of(largest)
    inverse = 1.0 / scale
    tl.store(SCALES + row, scale)
    out = OUT + row * (WIDTH + HIDDEN_WIDTH)
    if HAS_ATTENDED:
        tl.store(out + two, within_float8(a0 * inverse).to(OUT.dtype.element_ty))
        tl.store(out + 2 * THIRD + one, within_float8(a1 * inverse).to(OUT.dtype.element_ty))
    if HAS_HIDDEN:
        tl.store(out + WIDTH + eight, within_float8(h0 * inverse).to(OUT.dtype.element_ty))
        tl.store(out + WIDTH + 8 * THIRD + four, within_float8(h1 * inverse).to(OUT.dtype.element_ty))


@triton.jit
def scale_heads_kernel(
    HEADS_IN,
    OUT,
    SCALES,
    row_stride,
    count,
    HAS_SCALES: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
):
    """The grid is (rows, groups of HEADS heads); each of `count` heads has one scale for all rows, or none has."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    places = heads[:, None] * HEAD_WIDTH + tl.arange(0, HEAD_WIDTH)[None, :]
    values = tl.load(HEADS_IN + row * row_stride + places).to(tl.float32)
    if HAS_SCALES:
        values = values / tl.load(SCALES + heads)[:, None]
    tl.store(OUT + row * count * HEAD_WIDTH + places, within_float8(values).to(OUT.dtype.element_ty))
