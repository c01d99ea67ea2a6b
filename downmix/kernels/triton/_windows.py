# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Windows of 1 to 3 dimensions in tiles, for pooling kernels; dimensions that are missing have size 1.

A tile is rows by lanes. Lanes lie side by side in memory, so they are channels where x is channels_last, and the last
dimension otherwise; rows are all the rest. Where that keeps loads wide or a long window busy, BLOCK_K elements of each
window lie side by side in the tile too, and a kernel walks the window in steps of that many.
"""

import triton
import triton.language as tl

from ._common import aligned, larger


@triton.jit
def coordinates(
    rows, lanes, sizes, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """b, c, d, h, w of the rows and lanes of this program, each BLOCK_K times over, and which of both exist."""
    l_tiles = tl.cdiv(lanes, BLOCK_L)
    row, lane = tl.program_id(0) // l_tiles, tl.program_id(0) % l_tiles
    if CHANNELS_INNER:
        row = row.to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R * BLOCK_K) // BLOCK_K
        lane = lane.to(INDEX) * BLOCK_L + tl.arange(0, BLOCK_L)
    else:
        row = row.to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)
        lane = lane.to(INDEX) * BLOCK_L + tl.arange(0, BLOCK_L * BLOCK_K) // BLOCK_K
    row_exists, lane_exists = row < rows, lane < aligned(lanes, ALIGN)
    channels, depth, height, width = sizes
    if CHANNELS_INNER:
        c = lane
        w = row % width
        row = row // width
    else:
        w = lane
    h = row % height
    d = row // height % depth
    b = row // height // depth
    if not CHANNELS_INNER:
        c = b % channels
        b = b // channels
    return b, c, d, h, w, row_exists, lane_exists


@triton.jit
def offsets_of(strides, b, c, d, h, w, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Where elements lie, [row, lane]; ALIGN divides every stride but the lanes'."""
    row = b.to(tl.int64) * strides[0] + d.to(tl.int64) * strides[2] + h.to(tl.int64) * strides[3]
    if CHANNELS_INNER:
        row, lane = row + w.to(tl.int64) * strides[4], c.to(tl.int64) * strides[1]
    else:
        row, lane = row + c.to(tl.int64) * strides[1], w.to(tl.int64) * strides[4]
    return aligned(row, ALIGN)[:, None] + lane[None, :]


@triton.jit
def windows_of(
    rows, lanes, sizes, STRIDE: tl.constexpr, PADDING: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    WIDE: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Where the windows of this program start, as ``coordinates``; with WIDE each lane is at its own element."""
    lane_align: tl.constexpr = ALIGN if CHANNELS_INNER else 1
    b, c, d, h, w, row_exists, lane_exists = coordinates(
        rows, lanes, sizes, INDEX, CHANNELS_INNER, lane_align, BLOCK_R, BLOCK_L, BLOCK_K
    )
    if WIDE:  # STRIDE[2] == KERNEL[2] == BLOCK_K; said so that the compiler sees that lanes are contiguous
        w = (tl.program_id(0) % tl.cdiv(lanes, BLOCK_L)).to(INDEX) * (BLOCK_L * BLOCK_K)
        w += tl.arange(0, BLOCK_L * BLOCK_K)
        lane_exists = w < aligned(lanes * BLOCK_K, ALIGN)
    else:
        w *= STRIDE[2]
    return b, c, d * STRIDE[0] - PADDING[0], h * STRIDE[1] - PADDING[1], w - PADDING[2], row_exists, lane_exists


@triton.jit
def elements(
    ptr, strides, windows, DILATION: tl.constexpr, CHANNELS_INNER: tl.constexpr, WIDE: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Pointers to the elements of the first step through the windows; ``step_of`` leads from there to the others."""
    b, c, d, h, w, _, _ = windows
    if not WIDE:
        w += tl.arange(0, w.shape[0]) % BLOCK_K * DILATION[2]
    return ptr + offsets_of(strides, b, c, d, h, w, CHANNELS_INNER, ALIGN)


@triton.jit
def step_of(
    step, strides, KERNEL: tl.constexpr, DILATION: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """How far the elements of a step lie from those of the first."""
    K_STEPS: tl.constexpr = (KERNEL[2] + BLOCK_K - 1) // BLOCK_K
    d = step // K_STEPS // KERNEL[1] * DILATION[0]
    h = step // K_STEPS % KERNEL[1] * DILATION[1]
    return distance(strides, d, h, step % K_STEPS * (BLOCK_K * DILATION[2]), CHANNELS_INNER, ALIGN)


@triton.jit
def distance(strides, d, h, w, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr):
    """How far elements lie from those that are d, h and w less, the same for all."""
    d, h, w = tl.full([], d, tl.int64), tl.full([], h, tl.int64), tl.full([], w, tl.int64)
    slow, inner = d * strides[2] + h * strides[3], w * strides[4]
    return aligned(slow + inner, ALIGN) if CHANNELS_INNER else aligned(slow, ALIGN) + inner


@triton.jit
def step_exists(
    step, windows, sizes, KERNEL: tl.constexpr, DILATION: tl.constexpr, EDGES: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Which elements of one step through the windows exist."""
    _, _, d, h, w, row_exists, lane_exists = windows
    _, depth, height, width = sizes
    K_STEPS: tl.constexpr = (KERNEL[2] + BLOCK_K - 1) // BLOCK_K
    row_exists &= tl.full([1], step, tl.int32) < KERNEL[0] * KERNEL[1] * K_STEPS
    if EDGES[0]:
        d += step // K_STEPS // KERNEL[1] * DILATION[0]
        row_exists &= (d >= 0) & (d < depth)
    if EDGES[1]:
        h += step // K_STEPS % KERNEL[1] * DILATION[1]
        row_exists &= (h >= 0) & (h < height)
    w_exists = w == w
    if not WIDE:
        k = step % K_STEPS * BLOCK_K + tl.arange(0, w.shape[0]) % BLOCK_K
        w += k * DILATION[2]
        if KERNEL[2] % BLOCK_K:
            w_exists &= k < KERNEL[2]
    if EDGES[2]:
        w_exists &= (w >= 0) & (w < (width if CHANNELS_INNER else aligned(width, ALIGN)))
    if CHANNELS_INNER:
        row_exists &= w_exists
    else:
        lane_exists &= w_exists
    return row_exists[:, None] & lane_exists[None, :]


# One return a function from here on: Triton compiles what follows a return too.


@triton.jit
def together(values, CHANNELS_INNER: tl.constexpr, BLOCK_K: tl.constexpr):
    """A dimension of BLOCK_K of its own for the elements of each window: 1 with CHANNELS_INNER, else 2."""
    if CHANNELS_INNER:
        apart = tl.reshape(values, [values.shape[0] // BLOCK_K, BLOCK_K, values.shape[1]])
    else:
        apart = tl.reshape(values, [values.shape[0], values.shape[1] // BLOCK_K, BLOCK_K])
    return apart


@triton.jit
def spread(values, CHANNELS_INNER: tl.constexpr, BLOCK_K: tl.constexpr):
    """A value of each window for all of its elements in the tile."""
    if BLOCK_K == 1:
        spread = values
    elif CHANNELS_INNER:
        repeated = tl.broadcast_to(values[:, None, :], [values.shape[0], BLOCK_K, values.shape[1]])
        spread = tl.reshape(repeated, [values.shape[0] * BLOCK_K, values.shape[1]])
    else:
        repeated = tl.broadcast_to(values[:, :, None], [values.shape[0], values.shape[1], BLOCK_K])
        spread = tl.reshape(repeated, [values.shape[0], values.shape[1] * BLOCK_K])
    return spread


@triton.jit
def largest_in_window(values, CHANNELS_INNER: tl.constexpr, BLOCK_K: tl.constexpr):
    axis: tl.constexpr = 1 if CHANNELS_INNER else 2
    return values if BLOCK_K == 1 else tl.reduce(together(values, CHANNELS_INNER, BLOCK_K), axis, larger)


@triton.jit
def sum_over_window(values, CHANNELS_INNER: tl.constexpr, BLOCK_K: tl.constexpr):
    axis: tl.constexpr = 1 if CHANNELS_INNER else 2
    return values if BLOCK_K == 1 else tl.sum(together(values, CHANNELS_INNER, BLOCK_K), axis)
