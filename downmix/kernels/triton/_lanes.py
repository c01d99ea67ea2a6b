# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false
"""Where the lanes of the kernels for overlapping windows are, and how they read and write a row of their columns.

A lane has some columns of its own and reads more on both sides. With channels inside, lanes lie side by side in memory,
a channel each. Else a lane's columns do: it takes VECTOR of them at a time, which divides where its own begin.
"""

import triton
import triton.language as tl

from ._common import aligned
from ._vectors import apart, side_by_side


@triton.jit
def lanes_of(
    program, counts, sizes, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """b, c, d, the chunk of rows and the group of columns of this program's lanes, and which of these exist."""
    rows, chunks, groups, _steps = counts
    channels, depth, _height, _width = sizes
    l_tiles = tl.cdiv(channels, BLOCK_L) if CHANNELS_INNER else 1
    row = (program // l_tiles).to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_exists = (row < rows)[:, None]
    group = row % groups
    row = row // groups
    chunk = row % chunks
    row = row // chunks
    d = row % depth
    row = row // depth
    if CHANNELS_INNER:
        b, c = row, program % l_tiles * BLOCK_L + tl.arange(0, BLOCK_L)
        exists = row_exists & (c < aligned(channels, ALIGN))[None, :]
    else:
        b, c = row // channels, row % channels
        exists = row_exists & (tl.arange(0, BLOCK_L) < 1)[None, :]
    return b, c, d, chunk, group, exists


@triton.jit
def pointers_to(ptr, strides, b, c, d, h, w, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Pointers to h, w of the lanes, [row, lane]; lanes are channels or but one."""
    row = b.to(tl.int64) * strides[0] + d.to(tl.int64) * strides[2] + h.to(tl.int64) * strides[3]
    column, c = w.to(tl.int64) * strides[4], c.to(tl.int64) * strides[1]
    if CHANNELS_INNER:
        pointers = ptr + (aligned(row + column, ALIGN)[:, None] + c[None, :])
    else:
        pointers = ptr + (aligned(row + c, ALIGN) + column)[:, None]
    return pointers


@triton.jit
def rows_down(strides, rows, ALIGN: tl.constexpr):
    """How far a row lies from one so many rows above."""
    return aligned(tl.full([], rows, tl.int64) * strides[3], ALIGN)


@triton.jit
def load_row(
    ptr, w, width, mask, other, FIRST: tl.constexpr, COLS: tl.constexpr, STEP: tl.constexpr, VECTOR: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """COLS columns of each lane, the FIRST of them so far from w, where ptr is; ``other`` beyond the map."""
    START: tl.constexpr = FIRST // VECTOR * VECTOR
    COUNT: tl.constexpr = (FIRST - START + COLS + VECTOR - 1) // VECTOR
    values = ()
    for i in tl.static_range(COUNT):
        column = w + (START + i * VECTOR)
        within = mask & ((column >= 0) & (column < width))[:, None]
        there = ptr + (START + i * VECTOR) * STEP
        if VECTOR == 1:
            values = values + (tl.load(there, within, other=other).to(DTYPE),)
        else:
            values = values + apart(tl.load(there + tl.arange(0, VECTOR), within, other=other).to(DTYPE), VECTOR)
    return values[FIRST - START : FIRST - START + COLS]


@triton.jit
def load_rows(
    ptr, strides, h, w, height, width, exists, ROWS: tl.constexpr, FIRST: tl.constexpr, COLS: tl.constexpr,
    STEP: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """ROWS of x, one after the other, from h on, where ptr is; −∞ beyond the map."""
    values = ()
    for i in tl.static_range(ROWS):
        mask = exists & ((h + i >= 0) & (h + i < height))[:, None]
        row = ptr + rows_down(strides, i, ALIGN)
        values = values + load_row(row, w, width, mask, float("-inf"), FIRST, COLS, STEP, VECTOR, DTYPE)
    return values


@triton.jit
def load_middle(
    ptr, strides, h, w, height, width, exists, DOWN: tl.constexpr, FIRST: tl.constexpr, COLS: tl.constexpr,
    STEP: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """A row so far DOWN from h, where ptr is, or the map's last where that is above: −∞ is beyond its sides only."""
    down = tl.minimum(DOWN, height - 1 - h).to(tl.int64)
    row = ptr + aligned(down * strides[3], ALIGN)[:, None]
    return load_row(row, w, width, exists, float("-inf"), FIRST, COLS, STEP, VECTOR, DTYPE)


@triton.jit
def store_row(
    ptr, values, w, width, mask, COLS: tl.constexpr, STEP: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """The opposite, from w on."""
    for i in tl.static_range(COLS // VECTOR):
        column = w + i * VECTOR
        within = mask & ((column >= 0) & (column < width))[:, None]
        there = ptr + i * VECTOR * STEP
        if VECTOR == 1:
            tl.store(there, values[i].to(ptr.dtype.element_ty), within)
        else:
            vector = side_by_side(values[i * VECTOR : (i + 1) * VECTOR], VECTOR)
            tl.store(there + tl.arange(0, VECTOR), vector.to(ptr.dtype.element_ty), within)
