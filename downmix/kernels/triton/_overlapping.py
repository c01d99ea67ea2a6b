# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false
"""Triton kernels of soft_pool for windows of one or two dimensions that overlap: x is read once, and written once.

A lane walks down the rows of windows, CELLS of them side by side, and keeps in registers what the next row shares with
this one: elements in forward, sums of gradients too in backward. There it computes the windows to its left as well,
whose elements reach into its own columns, rather than wait for a neighbour. A cell is what lies between the starts of
two windows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ._common import THREADS, Launch, aligned, larger, power_of_two
from ._plan import Plan
from ._softmax import below, element_gradient, exp, for_elements
from ._windows import distance


class Share(NamedTuple):
    """What a lane is given.

    Attributes:
        columns: of x, about; as wide as registers allow, as the windows to the left are computed for each lane.
        lanes: of a thread, side by side in memory, which make its loads wider.
        steps: rows of windows at least, as in backward those above are computed for each lane.
        programs: that keep all of the GPU busy; where there are more, lanes take more than that many steps.
    """

    columns: int
    lanes: int
    steps: int
    programs: int


# By whether channels lie side by side; measured on an H200.
FORWARD = {False: Share(4, 1, 8, 8192), True: Share(2, 4, 8, 8192)}
BACKWARD = {False: Share(4, 1, 8, 2048), True: Share(4, 2, 8, 8192)}


@triton.jit
def _lanes(
    rows, channels, depth, chunks, groups,
    INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """b, c, d, the chunk of rows and the group of columns of this program's lanes, and which of these exist."""
    l_tiles = tl.cdiv(channels, BLOCK_L) if CHANNELS_INNER else 1
    row = (tl.program_id(0) // l_tiles).to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_exists = (row < rows)[:, None]
    group = row % groups
    row = row // groups
    chunk = row % chunks
    row = row // chunks
    d = row % depth
    row = row // depth
    if CHANNELS_INNER:
        b, c = row, tl.program_id(0) % l_tiles * BLOCK_L + tl.arange(0, BLOCK_L)
        exists = row_exists & (c < aligned(channels, ALIGN))[None, :]
    else:
        b, c = row // channels, row % channels
        exists = row_exists & (tl.arange(0, BLOCK_L) < 1)[None, :]
    return b, c, d, chunk, group, exists


@triton.jit
def _pointers(ptr, strides, b, c, d, h, w, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Pointers to h, w of the lanes, [row, lane]; lanes are channels or but one."""
    row = b.to(tl.int64) * strides[0] + d.to(tl.int64) * strides[2]
    row += h.to(tl.int64) * strides[3] + w.to(tl.int64) * strides[4]
    c = c.to(tl.int64) * strides[1]
    return ptr + (aligned(row, ALIGN)[:, None] + c[None, :] if CHANNELS_INNER else (row + c)[:, None])


@triton.jit
def _load(
    ptr, strides, h, w, height, width, exists, ROWS: tl.constexpr, COLS: tl.constexpr,
    DTYPE: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """ROWS by COLS elements of each lane from h, w on, where ptr is; −∞ beyond the map."""
    values = ()
    for i in tl.static_range(ROWS):
        row_exists = exists & ((h + i >= 0) & (h + i < height))[:, None]
        for j in tl.static_range(COLS):
            mask = row_exists & ((w + j >= 0) & (w + j < width))[:, None]
            there = ptr + distance(strides, 0, i, j, CHANNELS_INNER, ALIGN)
            values = values + (tl.load(there, mask, other=float("-inf")).to(DTYPE),)
    return values


@triton.jit
def _soften(values, FIRST: tl.constexpr, COLS: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr):
    """For the window that starts at values[FIRST]: m = max a, Σ e^(a − m), Σ e^(a − m) (a − m), and both factors."""
    top = values[FIRST]
    for k in tl.static_range(1, K_H * K_W):
        top = larger(top, values[FIRST + k // K_W * COLS + k % K_W])
    total, mean = tl.zeros_like(top), tl.zeros_like(top)
    weights, belows = (), ()
    for k in tl.static_range(K_H * K_W):
        a = below(values[FIRST + k // K_W * COLS + k % K_W], top)
        weight = exp(a)
        total += weight
        mean += weight * a
        weights, belows = weights + (weight,), belows + (a,)
    return top, total, mean, weights, belows


@triton.jit
def _soft_pool_rows_forward_kernel(
    x_ptr, y_ptr, x_strides, y_strides, rows, chunks, groups, steps, sizes, out_sizes,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    KEPT: tl.constexpr = K_H - S_H
    COLS: tl.constexpr = (CELLS - 1) * S_W + K_W
    channels, depth, height, width = sizes
    b, c, d, chunk, group, exists = _lanes(
        rows, channels, depth, chunks, groups, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L
    )
    y_h, y_w = chunk * steps, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W - PADDING[2]
    x_ptr = _pointers(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    y_ptr = _pointers(y_ptr, y_strides, b, c, d, y_h, y_w, CHANNELS_INNER, Y_ALIGN)
    kept = _load(x_ptr, x_strides, h, w, height, width, exists, KEPT, COLS, DTYPE, CHANNELS_INNER, X_ALIGN)
    for _ in range(steps):
        inside = exists & (y_h < out_sizes[2])[:, None]
        values = kept + _load(
            x_ptr + distance(x_strides, 0, KEPT, 0, CHANNELS_INNER, X_ALIGN), x_strides, h + KEPT, w, height, width,
            inside, S_H, COLS, DTYPE, CHANNELS_INNER, X_ALIGN,
        )  # fmt: skip
        for n in tl.static_range(CELLS):
            top, total, mean, _weights, _belows = _soften(values, n * S_W, COLS, K_H, K_W)
            y = tl.where(tl.abs(top) == float("inf"), top, top + mean / total)
            there = y_ptr + distance(y_strides, 0, 0, n, CHANNELS_INNER, Y_ALIGN)
            tl.store(there, y.to(y_ptr.dtype.element_ty), inside & (y_w + n < out_sizes[3])[:, None])
        kept = values[S_H * COLS :]
        y_h += 1
        h += S_H
        x_ptr += distance(x_strides, 0, S_H, 0, CHANNELS_INNER, X_ALIGN)
        y_ptr += distance(y_strides, 0, 1, 0, CHANNELS_INNER, Y_ALIGN)


@triton.jit
def _soft_pool_rows_backward_kernel(
    grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, rows, chunks, groups, steps, sizes, out_sizes,
    EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    # How many windows above, and to the left, reach into a cell.
    ABOVE: tl.constexpr = (K_H - 1) // S_H
    LEFT: tl.constexpr = (K_W - 1) // S_W
    KEPT: tl.constexpr = K_H - S_H
    COLS: tl.constexpr = (CELLS + LEFT - 1) * S_W + K_W
    OWN: tl.constexpr = CELLS * S_W
    channels, depth, height, width = sizes
    b, c, d, chunk, group, exists = _lanes(
        rows, channels, depth, chunks, groups, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L
    )
    y_h, y_w = chunk * steps - ABOVE, group * CELLS - LEFT
    h, w = y_h * S_H - PADDING[1], y_w * S_W - PADDING[2]
    x_ptr = _pointers(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    dx_ptr = _pointers(dx_ptr, dx_strides, b, c, d, h, w + LEFT * S_W, CHANNELS_INNER, DX_ALIGN)
    grad_ptr = _pointers(grad_ptr, grad_strides, b, c, d, y_h, y_w, CHANNELS_INNER, GRAD_ALIGN)
    kept = _load(x_ptr, x_strides, h, w, height, width, exists, KEPT, COLS, DTYPE, CHANNELS_INNER, X_ALIGN)
    zero = tl.zeros([BLOCK_R, BLOCK_L], DTYPE)
    sums = (zero,) * (KEPT * OWN)
    for step in range(steps + ABOVE):
        values = kept + _load(
            x_ptr + distance(x_strides, 0, KEPT, 0, CHANNELS_INNER, X_ALIGN), x_strides, h + KEPT, w, height, width,
            exists, S_H, COLS, DTYPE, CHANNELS_INNER, X_ALIGN,
        )  # fmt: skip
        sums = sums + (zero,) * (S_H * OWN)
        for n in tl.static_range(CELLS + LEFT):
            top, total, mean, weights, belows = _soften(values, n * S_W, COLS, K_H, K_W)
            inside = (y_h >= 0) & (y_h < out_sizes[2]) & (y_w + n >= 0) & (y_w + n < out_sizes[3])
            inside = exists & inside[:, None]
            there = grad_ptr + distance(grad_strides, 0, 0, n, CHANNELS_INNER, GRAD_ALIGN)
            grad = tl.load(there, inside, other=0).to(DTYPE)
            _top, scale, less = for_elements(top, total, mean, grad, inside)
            added = ()
            for k in tl.static_range(K_H * OWN):
                # The window's own column where it has one there.
                if k % OWN + (LEFT - n) * S_W >= 0 and k % OWN + (LEFT - n) * S_W < K_W:
                    added = added + (
                        sums[k]
                        + element_gradient(
                            weights[k // OWN * K_W + k % OWN + (LEFT - n) * S_W],
                            belows[k // OWN * K_W + k % OWN + (LEFT - n) * S_W],
                            scale,
                            less,
                            EXACT,
                        ),
                    )
                else:
                    added = added + (sums[k],)
            sums = added
        for k in tl.static_range(S_H * OWN):
            x_h, x_w = h + k // OWN, w + LEFT * S_W + k % OWN
            mask = exists & ((step >= ABOVE) & (x_h >= 0) & (x_h < height) & (x_w >= 0) & (x_w < width))[:, None]
            there = dx_ptr + distance(dx_strides, 0, k // OWN, k % OWN, CHANNELS_INNER, DX_ALIGN)
            tl.store(there, sums[k].to(dx_ptr.dtype.element_ty), mask)
        kept, sums = values[S_H * COLS :], sums[S_H * OWN :]
        y_h += 1
        h += S_H
        x_ptr += distance(x_strides, 0, S_H, 0, CHANNELS_INNER, X_ALIGN)
        dx_ptr += distance(dx_strides, 0, S_H, 0, CHANNELS_INNER, DX_ALIGN)
        grad_ptr += distance(grad_strides, 0, 1, 0, CHANNELS_INNER, GRAD_ALIGN)


def fits(plan: Plan) -> bool:
    """Whether these kernels take the windows: they overlap without gaps, and a lane's registers hold theirs."""
    if plan.side_by_side or (plan.kernel[0], plan.stride[0], plan.padding[0]) != (1, 1, 0) or max(plan.dilation) > 1:
        return False
    return all(k >= s for k, s in zip(plan.kernel, plan.stride, strict=True)) and math.prod(plan.kernel) <= 25


def forward_launch(plan: Plan) -> Launch:
    (x,), (y,) = plan.inputs, plan.outputs
    programs, counts, constants = _share_out(plan, y.shape[3:], (0, 0), FORWARD[plan.channels_inner])
    arguments = (x.stride(), y.stride(), *counts, tuple(x.shape[1:]), tuple(y.shape[1:]))
    return Launch(_soft_pool_rows_forward_kernel, programs, arguments, constants | plan.alignments(X=x, Y=y))


def backward_launch(plan: Plan, exact: bool) -> Launch:
    (x, dx), (grad,) = plan.inputs, plan.outputs
    cells = [triton.cdiv(x.shape[i + 2] + plan.padding[i], plan.stride[i]) for i in (1, 2)]
    reach = [(plan.kernel[i] - 1) // plan.stride[i] for i in (1, 2)]
    programs, counts, constants = _share_out(plan, cells, reach, BACKWARD[plan.channels_inner])
    arguments = (grad.stride(), x.stride(), dx.stride(), *counts, tuple(x.shape[1:]), tuple(grad.shape[1:]))
    constants |= {**plan.alignments(X=x, GRAD=grad, DX=dx), "EXACT": exact}
    return Launch(_soft_pool_rows_backward_kernel, programs, arguments, constants)


def _share_out(
    plan: Plan, cells: Sequence[int], reach: Sequence[int], share: Share
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """The number of programs; those of rows of tiles, chunks, groups and steps of each; and the kernels' constants.

    Args:
        plan: of the windows.
        cells: rows and columns of cells to compute.
        reach: windows above and left of these that are computed too.
        share: of a lane.
    """
    batch, channels, depth = plan.inputs[0].shape[:3]
    width = max(1, share.columns // plan.stride[2])
    elements = plan.kernel[1] * ((width + reach[1] - 1) * plan.stride[2] + plan.kernel[2])
    lanes = min(share.lanes, 1 << max(1, 64 // elements).bit_length() - 1)  # as many as registers hold elements of
    block_l = power_of_two(channels, 64) if plan.channels_inner else 1
    block_r = THREADS * lanes // block_l
    groups = triton.cdiv(cells[1], width)
    rows = batch * depth * groups * (1 if plan.channels_inner else channels)
    l_tiles = triton.cdiv(channels, block_l) if plan.channels_inner else 1
    chunks = min(triton.cdiv(share.programs, triton.cdiv(rows, block_r) * l_tiles), max(1, cells[0] // share.steps))
    steps = triton.cdiv(cells[0], chunks)
    chunks = triton.cdiv(cells[0], steps)
    rows *= chunks
    names = ("KERNEL", "STRIDE", "PADDING", "DTYPE", "INDEX", "CHANNELS_INNER")
    constants = {name: plan.constants[name] for name in names}
    constants |= {"CELLS": width, "BLOCK_R": block_r, "BLOCK_L": block_l}
    return triton.cdiv(rows, block_r) * l_tiles, (rows, chunks, groups, steps), constants
