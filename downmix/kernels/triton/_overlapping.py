# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false
"""Triton kernels of soft_pool for windows of one or two dimensions that overlap: x is read once, and written once.

A lane walks down the rows of windows, CELLS of them side by side, and keeps in registers what the next row shares with
this one: elements and their weights in forward, sums of gradients too in backward. There it also computes the windows
that reach into its own columns from both sides, rather than wait for a neighbour. A cell is what lies between the
starts of two windows. Windows that are not calm (`_columns.py`) take a second walk, in which each has its own maximum.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._columns import add_gradients, bounded, center_of, columns_of, is_restless, weights_of, window_of
from ._common import LOAD_BYTES, THREADS, Launch, alignment, larger, power_of_two
from ._lanes import lanes_of, load_middle, load_row, load_rows, pointers_to, rows_down, store_row
from ._plan import Plan
from ._softmax import LOWEST, below, element_gradient, exp, for_elements


class Share(NamedTuple):
    """What a lane is given.

    Attributes:
        columns: of x, about; or 4, where more do not fit into registers.
        lanes: of a thread, side by side in memory, which make its loads wider.
        steps: rows of windows at least, as in backward those above are computed for each lane.
        programs: that keep all of the GPU busy; where there are more, lanes take more than that many steps.
        registers: of a thread at most; with 128 of them, 16 warps share a multiprocessor.
        ahead: rows of windows whose elements are loaded while those before are computed: 0 or 1.
    """

    columns: int
    lanes: int
    steps: int
    programs: int
    registers: int = 128
    ahead: int = 0

    def holds(self, numbers: int) -> bool:
        """Whether a thread's registers hold so many numbers, and all else."""
        return numbers <= self.registers * 3 // 4


# By whether channels lie side by side.
FORWARD = {False: Share(8, 1, 8, 8192), True: Share(4, 2, 8, 8192)}
BACKWARD = {False: Share(8, 1, 8, 2048), True: Share(8, 1, 8, 8192)}
# Where a thread holds more numbers, the compiler would take a few registers more, and is told not to.
_MANY = 60


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
def _forward(
    program, x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes,
    CALM: tl.constexpr, AHEAD: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, X_STEP: tl.constexpr, Y_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """All rows of a program; where CALM, it says which lanes have windows that are not."""
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    KEPT: tl.constexpr = K_H - S_H
    FIRST: tl.constexpr = -PADDING[2]
    COLS: tl.constexpr = (CELLS - 1) * S_W + K_W
    OTHER: tl.constexpr = LOWEST if CALM else float("-inf")
    _rows, _chunks, _groups, steps = counts
    _channels, _depth, height, width = sizes
    b, c, d, chunk, group, exists = lanes_of(program, counts, sizes, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L)
    y_h, y_w = chunk * steps, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W
    x_ptr = pointers_to(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    y_ptr = pointers_to(y_ptr, y_strides, b, c, d, y_h, y_w, CHANNELS_INNER, Y_ALIGN)
    kept = load_rows(
        x_ptr, x_strides, h, w, height, width, exists, OTHER, KEPT, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    middle = load_middle(
        x_ptr, x_strides, h, w, height, width, exists, K_H // 2, FIRST, K_W, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    center, weights = center_of(middle), ()
    if CALM:
        kept = bounded(kept)
        weights = weights_of(kept, center)
    restless = tl.zeros([BLOCK_R, BLOCK_L], tl.int1)
    upcoming = load_rows(
        x_ptr + rows_down(x_strides, KEPT, X_ALIGN), x_strides, h + KEPT, w, height, width, exists, OTHER,
        AHEAD * S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    for step in range(steps):
        inside = exists & (y_h < out_sizes[2])[:, None]
        upcoming = upcoming + load_rows(
            x_ptr + rows_down(x_strides, KEPT + AHEAD * S_H, X_ALIGN), x_strides, h + KEPT + AHEAD * S_H, w,
            height, width, inside & (tl.full([1, 1], AHEAD, tl.int32) + step < steps), OTHER,
            S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
        )  # fmt: skip
        fresh, upcoming = upcoming[: S_H * COLS], upcoming[S_H * COLS :]
        outputs = ()
        if CALM:
            fresh = bounded(fresh)
            weights = weights + weights_of(fresh, center)
            columns = columns_of(kept + fresh, weights, K_H, COLS)
            found = tl.zeros([BLOCK_R, BLOCK_L], tl.int1)
            for n in tl.static_range(CELLS):
                top, _inverse, mean = window_of(columns, n * S_W, K_W)
                outputs = outputs + (top + mean,)
                found |= (y_w + n < out_sizes[3])[:, None] & is_restless(top, center)
            restless |= inside & found
            weights = weights[S_H * COLS :]
        else:
            for n in tl.static_range(CELLS):
                top, total, mean, _weights, _belows = _soften(kept + fresh, n * S_W, COLS, K_H, K_W)
                outputs = outputs + (tl.where(tl.abs(top) == float("inf"), top, top + mean / total),)
        store_row(y_ptr, outputs, y_w, out_sizes[3], inside, CELLS, Y_STEP, Y_VECTOR)
        kept = (kept + fresh)[S_H * COLS :]
        y_h += 1
        h += S_H
        x_ptr += rows_down(x_strides, S_H, X_ALIGN)
        y_ptr += rows_down(y_strides, 1, Y_ALIGN)
    return restless


@triton.jit
def _soft_pool_rows_forward_kernel(
    x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, AHEAD: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, X_STEP: tl.constexpr, Y_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    restless = _forward(
        tl.program_id(0), x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, True, AHEAD,
        KERNEL, STRIDE, PADDING, CELLS, DTYPE, INDEX, CHANNELS_INNER, VECTOR, Y_VECTOR, X_STEP, Y_STEP,
        X_ALIGN, Y_ALIGN, BLOCK_R, BLOCK_L,
    )  # fmt: skip
    found = tl.max(tl.max(restless.to(tl.int32), 1), 0)
    if found > 0:
        _forward(
            _again(found), x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, False, 0,
            KERNEL, STRIDE, PADDING, CELLS, DTYPE, INDEX, CHANNELS_INNER, VECTOR, Y_VECTOR, X_STEP, Y_STEP,
            X_ALIGN, Y_ALIGN, BLOCK_R, BLOCK_L,
        )  # fmt: skip


@triton.jit
def _again(found):
    """The program, as if it depended on what was found, which is 1: else the compiler would keep in registers, through
    all of the first walk, where the second begins."""
    return tl.program_id(0) + (found - 1)


@triton.jit
def _backward(
    program, grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
    CALM: tl.constexpr, AHEAD: tl.constexpr, EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    CELLS: tl.constexpr, LEFT: tl.constexpr, WINDOWS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
    X_STEP: tl.constexpr, GRAD_STEP: tl.constexpr, DX_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """All rows of a program; where CALM, it says which lanes have windows that are not.

    LEFT is the first window that reaches into a lane's own columns, from its first cell on, and WINDOWS how many do.
    """
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    OWN: tl.constexpr = CELLS * S_W
    KEPT: tl.constexpr = K_H - S_H
    ABOVE: tl.constexpr = (K_H - 1) // S_H  # rows of windows above a cell that reach into it
    FIRST: tl.constexpr = LEFT * S_W - PADDING[2]
    COLS: tl.constexpr = (WINDOWS - 1) * S_W + K_W
    OTHER: tl.constexpr = LOWEST if CALM else float("-inf")
    _rows, _chunks, _groups, steps = counts
    _channels, _depth, height, width = sizes
    b, c, d, chunk, group, exists = lanes_of(program, counts, sizes, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L)
    y_h, y_w = chunk * steps - ABOVE, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W
    x_ptr = pointers_to(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    dx_ptr = pointers_to(dx_ptr, dx_strides, b, c, d, h, w, CHANNELS_INNER, DX_ALIGN)
    grad_ptr = pointers_to(grad_ptr, grad_strides, b, c, d, y_h, y_w, CHANNELS_INNER, GRAD_ALIGN)
    kept = load_rows(
        x_ptr, x_strides, h, w, height, width, exists, OTHER, KEPT, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    middle = load_middle(
        x_ptr, x_strides, h, w, height, width, exists, ABOVE * S_H + K_H // 2, -PADDING[2], K_W,
        X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    center, weights = center_of(middle), ()
    if CALM:
        kept = bounded(kept)
        weights = weights_of(kept, center)
    restless = tl.zeros([BLOCK_R, BLOCK_L], tl.int1)
    zero = tl.zeros([BLOCK_R, BLOCK_L], DTYPE)
    sums = (zero,) * (KEPT * OWN)
    upcoming = load_rows(
        x_ptr + rows_down(x_strides, KEPT, X_ALIGN), x_strides, h + KEPT, w, height, width, exists, OTHER,
        AHEAD * S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    inside = exists & ((y_h >= 0) & (y_h < out_sizes[2]))[:, None]
    upcoming_grads = load_row(
        grad_ptr, y_w, out_sizes[3], inside, 0, LEFT, WINDOWS, GRAD_STEP, GRAD_VECTOR, DTYPE
    )[: AHEAD * WINDOWS]  # fmt: skip
    for step in range(steps + ABOVE):
        more = exists & (tl.full([1, 1], AHEAD - ABOVE, tl.int32) + step < steps)
        upcoming = upcoming + load_rows(
            x_ptr + rows_down(x_strides, KEPT + AHEAD * S_H, X_ALIGN), x_strides, h + KEPT + AHEAD * S_H, w,
            height, width, more, OTHER, S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
        )  # fmt: skip
        upcoming_grads = upcoming_grads + load_row(
            grad_ptr + rows_down(grad_strides, AHEAD, GRAD_ALIGN), y_w, out_sizes[3],
            more & ((y_h + AHEAD >= 0) & (y_h + AHEAD < out_sizes[2]))[:, None],
            0, LEFT, WINDOWS, GRAD_STEP, GRAD_VECTOR, DTYPE,
        )  # fmt: skip
        fresh, upcoming = upcoming[: S_H * COLS], upcoming[S_H * COLS :]
        grads, upcoming_grads = upcoming_grads[:WINDOWS], upcoming_grads[WINDOWS:]
        inside = exists & ((y_h >= 0) & (y_h < out_sizes[2]))[:, None]
        sums = sums + (zero,) * (S_H * OWN)
        if CALM:
            fresh = bounded(fresh)
            weights = weights + weights_of(fresh, center)
            sums, found = add_gradients(
                sums, kept + fresh, weights, grads, center, y_w + LEFT, out_sizes[3], inside, EXACT,
                K_H, K_W, S_W, OWN, FIRST, COLS, WINDOWS,
            )  # fmt: skip
            restless |= found
            weights = weights[S_H * COLS :]
        else:
            sums = _add_gradients_of_any(
                sums, kept + fresh, grads, y_w + LEFT, out_sizes[3], inside, EXACT,
                K_H, K_W, S_W, OWN, FIRST, COLS, WINDOWS,
            )  # fmt: skip
        for i in tl.static_range(S_H):
            mask = exists & ((step >= ABOVE) & (h + i >= 0) & (h + i < height))[:, None]
            row = dx_ptr + rows_down(dx_strides, i, DX_ALIGN)
            store_row(row, sums[i * OWN : (i + 1) * OWN], w, width, mask, OWN, DX_STEP, VECTOR)
        kept, sums = (kept + fresh)[S_H * COLS :], sums[S_H * OWN :]
        y_h += 1
        h += S_H
        x_ptr += rows_down(x_strides, S_H, X_ALIGN)
        dx_ptr += rows_down(dx_strides, S_H, DX_ALIGN)
        grad_ptr += rows_down(grad_strides, 1, GRAD_ALIGN)
    return restless


@triton.jit
def _add_gradients_of_any(
    sums, values, grads, w, width, inside, EXACT: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr,
    S_W: tl.constexpr, OWN: tl.constexpr, FIRST: tl.constexpr, COLS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """``add_gradients`` of windows of any kind."""
    for n in tl.static_range(WINDOWS):
        top, total, mean, weights, belows = _soften(values, n * S_W, COLS, K_H, K_W)
        exists = inside & ((w + n >= 0) & (w + n < width))[:, None]
        _top, scale, less = for_elements(top, total, mean, grads[n], exists)
        added = ()
        for k in tl.static_range(K_H * OWN):
            if k % OWN - FIRST - n * S_W >= 0 and k % OWN - FIRST - n * S_W < K_W:  # the window has this column
                weight = weights[k // OWN * K_W + k % OWN - FIRST - n * S_W]
                a = belows[k // OWN * K_W + k % OWN - FIRST - n * S_W]
                added = added + (sums[k] + element_gradient(weight, a, scale, less, EXACT),)
            else:
                added = added + (sums[k],)
        sums = added
    return sums


@triton.jit
def _soft_pool_rows_backward_kernel(
    grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
    AHEAD: tl.constexpr, EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    CELLS: tl.constexpr, LEFT: tl.constexpr, WINDOWS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
    X_STEP: tl.constexpr, GRAD_STEP: tl.constexpr, DX_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    restless = _backward(
        tl.program_id(0), grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
        True, AHEAD, EXACT, KERNEL, STRIDE, PADDING, CELLS, LEFT, WINDOWS, DTYPE, INDEX, CHANNELS_INNER,
        VECTOR, GRAD_VECTOR, X_STEP, GRAD_STEP, DX_STEP, X_ALIGN, GRAD_ALIGN, DX_ALIGN, BLOCK_R, BLOCK_L,
    )  # fmt: skip
    found = tl.max(tl.max(restless.to(tl.int32), 1), 0)
    if found > 0:
        _backward(
            _again(found), grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
            False, 0, EXACT, KERNEL, STRIDE, PADDING, CELLS, LEFT, WINDOWS, DTYPE, INDEX, CHANNELS_INNER,
            VECTOR, GRAD_VECTOR, X_STEP, GRAD_STEP, DX_STEP, X_ALIGN, GRAD_ALIGN, DX_ALIGN, BLOCK_R, BLOCK_L,
        )  # fmt: skip


def fits(plan: Plan) -> bool:
    """Whether these kernels take the windows: they overlap without gaps, and a lane's registers hold theirs."""
    if plan.side_by_side or (plan.kernel[0], plan.stride[0], plan.padding[0]) != (1, 1, 0) or max(plan.dilation) > 1:
        return False
    return all(k >= s for k, s in zip(plan.kernel, plan.stride, strict=True)) and math.prod(plan.kernel) <= 25


def forward_launch(plan: Plan) -> Launch:
    (x,), (y,) = plan.inputs, plan.outputs
    kernel, stride = plan.kernel[2], plan.stride[2]

    def held(width: int) -> int:
        return 2 * plan.kernel[1] * ((width - 1) * stride + kernel)

    programs, counts, constants = _share_out(plan, y.shape[3:], FORWARD[plan.channels_inner], held)
    width = constants["CELLS"]
    constants |= {"VECTOR": _vector(plan, width * stride, x), "Y_VECTOR": _vector(plan, width, y)}
    arguments = (x.stride(), y.stride(), counts, tuple(x.shape[1:]), tuple(y.shape[1:]))
    return Launch(_soft_pool_rows_forward_kernel, programs, arguments, constants | _layouts(plan, X=x, Y=y))


def backward_launch(plan: Plan, exact: bool) -> Launch:
    (x, dx), (grad,) = plan.inputs, plan.outputs
    (_, k_h, k_w), (_, s_h, s_w), (_, p_h, p_w) = plan.kernel, plan.stride, plan.padding
    left = -((k_w - 1 - p_w) // s_w)  # the first window that reaches into a lane's own columns

    def windows(width: int) -> int:
        return (width * s_w - 1 + p_w) // s_w - left + 1

    def held(width: int) -> int:
        return 2 * k_h * ((windows(width) - 1) * s_w + k_w) + (k_h - s_h + 2) * width * s_w

    cells = [triton.cdiv(x.shape[3] + p_h, s_h), triton.cdiv(x.shape[4], s_w)]
    programs, counts, constants = _share_out(plan, cells, BACKWARD[plan.channels_inner], held)
    width = constants["CELLS"]
    constants |= {"LEFT": left, "WINDOWS": windows(width), "EXACT": exact}
    constants |= {"VECTOR": _vector(plan, width * s_w, x, dx), "GRAD_VECTOR": _vector(plan, width, grad)}
    arguments = (grad.stride(), x.stride(), dx.stride(), counts, tuple(x.shape[1:]), tuple(grad.shape[1:]))
    return Launch(
        _soft_pool_rows_backward_kernel, programs, arguments, constants | _layouts(plan, X=x, GRAD=grad, DX=dx)
    )


def _vector(plan: Plan, columns: int, *tensors: Tensor) -> int:
    """How many columns of each tensor a lane takes at once."""
    beside = not plan.channels_inner and all(tensor.stride(4) == 1 for tensor in tensors)
    widest = LOAD_BYTES // max(4, tensors[0].element_size())
    return math.gcd(widest, columns, *map(_divisor, tensors)) if beside else 1


def _divisor(x: Tensor) -> int:
    """What divides a row, and each step but that along it, where lanes do not lie side by side."""
    return alignment(x.shape[4], *(x.stride(i) for i in range(4) if x.shape[i] > 1))


def _layouts(plan: Plan, **tensors: Tensor) -> dict[str, int]:
    """The constants that say of each tensor the step from column to column, and what divides the others."""
    steps = {f"{name}_STEP": tensor.stride(4) for name, tensor in tensors.items()}
    if plan.channels_inner:
        return steps | plan.alignments(**tensors)
    return steps | {f"{name}_ALIGN": _divisor(tensor) for name, tensor in tensors.items()}


def _share_out(
    plan: Plan, cells: Sequence[int], share: Share, held: Callable[[int], int]
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """The number of programs; those of rows of tiles, chunks, groups and steps of each; and the kernels' constants.

    Args:
        plan: of the windows.
        cells: rows and columns of cells to compute.
        share: of a lane.
        held: how many numbers a lane holds, of how many cells it has.
    """
    batch, channels, depth = plan.inputs[0].shape[:3]
    size = 2 if plan.constants["DTYPE"] == tl.float64 else 1
    for columns in (share.columns, 4):
        width = max(1, columns // plan.stride[2])
        numbers = size * held(width)
        if share.holds(numbers):
            break
    lanes = share.lanes if share.holds(share.lanes * numbers) else 1
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
    constants |= {"AHEAD": share.ahead, "CELLS": width, "BLOCK_R": block_r, "BLOCK_L": block_l}
    many = lanes * numbers > _MANY and share.holds(lanes * numbers)
    if many and not torch.version.hip:  # whose compiler has no such option
        constants["maxnreg"] = share.registers
    return triton.cdiv(rows, block_r) * l_tiles, (rows, chunks, groups, steps), constants
