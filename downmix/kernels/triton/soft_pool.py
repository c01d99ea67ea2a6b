# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false
"""Triton kernels of soft_pool. Where windows do not overlap, one reading of x gives the gradient too."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from ...ops._windows import output_sizes
from .._layouts import Layout, blank, layout, remembered
from . import _common, _overlapping_plan
from ._common import Launch, aligned, empty_output, larger
from ._plan import Plan
from ._softmax import below, element_gradient, exp, for_elements
from ._windows import (
    coordinates,
    distance,
    elements,
    largest_in_window,
    offsets_of,
    spread,
    step_exists,
    step_of,
    sum_over_window,
    windows_of,
)


@triton.jit
def _soften(
    x_ptr, strides, windows, sizes, KERNEL: tl.constexpr, DILATION: tl.constexpr, EDGES: tl.constexpr,
    DTYPE: tl.constexpr, CHANNELS_INNER: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """For each window m = max a, Σ e^(a − m) and Σ e^(a − m) (a − m); one reading of x.

    A window of more than UNROLL steps is read in that many pieces, and the sums follow its maximum as it grows.
    """
    ROWS: tl.constexpr = BLOCK_R * BLOCK_K if CHANNELS_INNER else BLOCK_R
    LANES: tl.constexpr = BLOCK_L if CHANNELS_INNER else BLOCK_L * BLOCK_K
    top = tl.full([ROWS, LANES], float("-inf"), DTYPE)
    total = tl.zeros([ROWS, LANES], DTYPE)
    mean = tl.zeros([ROWS, LANES], DTYPE)
    pointers = elements(x_ptr, strides, windows, DILATION, CHANNELS_INNER, WIDE, ALIGN, BLOCK_K)
    for start in range(0, STEPS, UNROLL):
        peak = top
        for k in tl.static_range(UNROLL):
            step = pointers + step_of(start + k, strides, KERNEL, DILATION, CHANNELS_INNER, ALIGN, BLOCK_K)
            mask = step_exists(start + k, windows, sizes, KERNEL, DILATION, EDGES, CHANNELS_INNER, WIDE, ALIGN, BLOCK_K)
            peak = larger(peak, tl.load(step, mask, other=float("-inf")).to(DTYPE))
        if STEPS <= UNROLL:
            peak = spread(largest_in_window(peak, CHANNELS_INNER, BLOCK_K), CHANNELS_INNER, BLOCK_K)
        else:
            total, mean = _lowered(total, mean, below(top, peak))
        for k in tl.static_range(UNROLL):  # the compiler keeps the loads from above
            step = pointers + step_of(start + k, strides, KERNEL, DILATION, CHANNELS_INNER, ALIGN, BLOCK_K)
            mask = step_exists(start + k, windows, sizes, KERNEL, DILATION, EDGES, CHANNELS_INNER, WIDE, ALIGN, BLOCK_K)
            a = below(tl.load(step, mask, other=float("-inf")).to(DTYPE), peak)
            weight = exp(a)
            total += weight
            mean += weight * a
        top = peak
    if STEPS > UNROLL and BLOCK_K > 1:
        peak = spread(largest_in_window(top, CHANNELS_INNER, BLOCK_K), CHANNELS_INNER, BLOCK_K)
        total, mean = _lowered(total, mean, below(top, peak))
        top = peak
    return top, sum_over_window(total, CHANNELS_INNER, BLOCK_K), sum_over_window(mean, CHANNELS_INNER, BLOCK_K)


@triton.jit
def _lowered(total, mean, a):
    """Σ e^(a − m) and Σ e^(a − m) (a − m) once the maximum m is −a higher."""
    scale = exp(a)
    return total * scale, (mean + total * a) * scale


@triton.jit
def _soft_pool_forward_kernel(
    x_ptr, y_ptr, x_strides, y_strides, rows, lanes, sizes, out_sizes,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, EDGES: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr, WIDE: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y = m + Σ w (a − m), but m itself where that is infinite."""
    windows = windows_of(
        rows, lanes, out_sizes, STRIDE, PADDING, INDEX, CHANNELS_INNER, WIDE, X_ALIGN, BLOCK_R, BLOCK_L, BLOCK_K
    )
    top, total, mean = _soften(
        x_ptr, x_strides, windows, sizes, KERNEL, DILATION, EDGES, DTYPE, CHANNELS_INNER, WIDE, X_ALIGN,
        BLOCK_R, BLOCK_L, BLOCK_K, STEPS, UNROLL,
    )  # fmt: skip
    top = largest_in_window(top, CHANNELS_INNER, BLOCK_K)
    y = tl.where(tl.abs(top) == float("inf"), top, top + mean / total)
    b, c, d, h, w, row_exists, lane_exists = coordinates(
        rows, lanes, out_sizes, INDEX, CHANNELS_INNER, Y_ALIGN, BLOCK_R, BLOCK_L, 1
    )
    offsets = offsets_of(y_strides, b, c, d, h, w, CHANNELS_INNER, Y_ALIGN)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), row_exists[:, None] & lane_exists[None, :])


@triton.jit
def _soft_pool_backward_kernel(
    grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, rows, lanes, sizes, out_sizes, window_counts,
    EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, EDGES: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr, WIDE: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    r"""The gradient where windows lie side by side, so that each element has one: x and the gradient are read once.

    With w_i = e^(a_i − m) / Σ e^(a_j − m) and y = Σ w_i a_i, ∂w_j/∂a_i = w_j (δ_ij − w_i), so
    ∂y/∂a_i = w_i + Σ_j a_j w_j (δ_ij − w_i) = w_i (1 + a_i − y); a_i − y = (a_i − m) − (y − m) loses no digits.
    Windows beyond the last output have no gradient; they write the zeros of what no output saw.
    """
    windows = windows_of(
        rows, lanes, window_counts, STRIDE, PADDING, INDEX, CHANNELS_INNER, WIDE, X_ALIGN,
        BLOCK_R, BLOCK_L, BLOCK_K,
    )  # fmt: skip
    top, total, mean = _soften(
        x_ptr, x_strides, windows, sizes, KERNEL, DILATION, EDGES, DTYPE, CHANNELS_INNER, WIDE, X_ALIGN,
        BLOCK_R, BLOCK_L, BLOCK_K, STEPS, UNROLL,
    )  # fmt: skip
    b, c, d, h, w, row_exists, lane_exists = coordinates(
        rows, lanes, window_counts, INDEX, CHANNELS_INNER, 1, BLOCK_R, BLOCK_L, 1
    )
    row_exists &= (d < out_sizes[1]) & (h < out_sizes[2])
    if CHANNELS_INNER:
        row_exists &= w < out_sizes[3]
        lane_exists = c < aligned(lanes, GRAD_ALIGN)
    else:
        lane_exists = w < aligned(out_sizes[3], GRAD_ALIGN)
    offsets = offsets_of(grad_strides, b, c, d, h, w, CHANNELS_INNER, GRAD_ALIGN)
    grad = tl.load(grad_ptr + offsets, row_exists[:, None] & lane_exists[None, :], other=0).to(DTYPE)
    top = largest_in_window(top, CHANNELS_INNER, BLOCK_K)
    top, scale, less = for_elements(top, total, mean, grad, row_exists[:, None] & lane_exists[None, :])
    top = spread(top, CHANNELS_INNER, BLOCK_K)
    scale = spread(scale, CHANNELS_INNER, BLOCK_K)
    less = spread(less, CHANNELS_INNER, BLOCK_K)
    x_pointers = elements(x_ptr, x_strides, windows, DILATION, CHANNELS_INNER, WIDE, X_ALIGN, BLOCK_K)
    dx_pointers = elements(dx_ptr, dx_strides, windows, DILATION, CHANNELS_INNER, WIDE, DX_ALIGN, BLOCK_K)
    for start in range(0, STEPS, UNROLL):
        for k in tl.static_range(UNROLL):
            step = x_pointers + step_of(start + k, x_strides, KERNEL, DILATION, CHANNELS_INNER, X_ALIGN, BLOCK_K)
            mask = step_exists(
                start + k, windows, sizes, KERNEL, DILATION, EDGES, CHANNELS_INNER, WIDE, X_ALIGN, BLOCK_K
            )
            value = tl.load(step, mask, other=float("-inf")).to(DTYPE)
            a = below(value, top)
            dx = element_gradient(exp(a), a, scale, less, EXACT)
            step = dx_pointers + step_of(start + k, dx_strides, KERNEL, DILATION, CHANNELS_INNER, DX_ALIGN, BLOCK_K)
            mask = step_exists(
                start + k, windows, sizes, KERNEL, DILATION, EDGES, CHANNELS_INNER, WIDE, DX_ALIGN, BLOCK_K
            )
            tl.store(step, dx.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def _soft_pool_statistics_kernel(
    grad_ptr, x_ptr, top_ptr, scale_ptr, less_ptr, grad_strides, x_strides, y_strides, rows, lanes, sizes, out_sizes,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, EDGES: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr, WIDE: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Of each window m, g / Σ e^(a − m) and y − m: what its elements need to know where windows overlap."""
    windows = windows_of(
        rows, lanes, out_sizes, STRIDE, PADDING, INDEX, CHANNELS_INNER, WIDE, X_ALIGN, BLOCK_R, BLOCK_L, BLOCK_K
    )
    top, total, mean = _soften(
        x_ptr, x_strides, windows, sizes, KERNEL, DILATION, EDGES, DTYPE, CHANNELS_INNER, WIDE, X_ALIGN,
        BLOCK_R, BLOCK_L, BLOCK_K, STEPS, UNROLL,
    )  # fmt: skip
    top = largest_in_window(top, CHANNELS_INNER, BLOCK_K)
    b, c, d, h, w, row_exists, lane_exists = coordinates(
        rows, lanes, out_sizes, INDEX, CHANNELS_INNER, Y_ALIGN, BLOCK_R, BLOCK_L, 1
    )
    mask = row_exists[:, None] & lane_exists[None, :]
    grad = tl.load(grad_ptr + offsets_of(grad_strides, b, c, d, h, w, CHANNELS_INNER, GRAD_ALIGN), mask, other=0).to(
        DTYPE
    )
    top, scale, less = for_elements(top, total, mean, grad, mask)
    offsets = offsets_of(y_strides, b, c, d, h, w, CHANNELS_INNER, Y_ALIGN)
    tl.store(top_ptr + offsets, top, mask)
    tl.store(scale_ptr + offsets, scale, mask)
    tl.store(less_ptr + offsets, less, mask)


@triton.jit
def _soft_pool_gather_kernel(
    x_ptr, top_ptr, scale_ptr, less_ptr, dx_ptr, x_strides, y_strides, dx_strides, rows, lanes, sizes, out_sizes, cells,
    EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, OVERLAPS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
    PHASES: tl.constexpr, PHASES_UNROLL: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The gradient where windows overlap: each element sums over its windows, OVERLAPS at most in each dimension.

    A cell holds the elements from one window's start to the next. The one at phase f of cell i is at place
    f + j · stride of window i − j, so that f and j alone, which the compiler knows, say whether it is in there.
    """
    lane_align: tl.constexpr = X_ALIGN if CHANNELS_INNER else 1
    b, c, d, h, w, row_exists, lane_exists = coordinates(
        rows, lanes, cells, INDEX, CHANNELS_INNER, lane_align, BLOCK_R, BLOCK_L, 1
    )
    xd, xh, xw = d * STRIDE[0] - PADDING[0], h * STRIDE[1] - PADDING[1], w * STRIDE[2] - PADDING[2]
    x_pointers = x_ptr + offsets_of(x_strides, b, c, xd, xh, xw, CHANNELS_INNER, X_ALIGN)
    dx_pointers = dx_ptr + offsets_of(dx_strides, b, c, xd, xh, xw, CHANNELS_INNER, DX_ALIGN)
    window = offsets_of(y_strides, b, c, d, h, w, CHANNELS_INNER, Y_ALIGN)
    for first_phase in range(0, PHASES, PHASES_UNROLL):
        for n in tl.static_range(PHASES_UNROLL):
            phase = first_phase + n
            fd, fh, fw = phase // STRIDE[2] // STRIDE[1], phase // STRIDE[2] % STRIDE[1], phase % STRIDE[2]
            mask = _within(xd + fd, xh + fh, xw + fw, sizes, row_exists, lane_exists, CHANNELS_INNER)
            far = distance(x_strides, fd, fh, fw, CHANNELS_INNER, X_ALIGN)
            value = tl.load(x_pointers + far, mask, other=0).to(DTYPE)
            dx = tl.zeros([BLOCK_R, BLOCK_L], DTYPE)
            for start in range(0, STEPS, UNROLL):
                for k in tl.static_range(UNROLL):
                    step = start + k
                    jd, jh, jw = (
                        step // OVERLAPS[2] // OVERLAPS[1],
                        step // OVERLAPS[2] % OVERLAPS[1],
                        step % OVERLAPS[2],
                    )
                    holds = (
                        (tl.full([1], step, tl.int32) < STEPS)
                        & _holds(fd + jd * STRIDE[0], KERNEL[0], DILATION[0])
                        & _holds(fh + jh * STRIDE[1], KERNEL[1], DILATION[1])
                        & _holds(fw + jw * STRIDE[2], KERNEL[2], DILATION[2])
                    )
                    exists = _within(d - jd, h - jh, w - jw, out_sizes, row_exists & holds, lane_exists, CHANNELS_INNER)
                    at = window - distance(y_strides, jd, jh, jw, CHANNELS_INNER, Y_ALIGN)
                    top = tl.load(top_ptr + at, exists, other=float("inf"))
                    scale = tl.load(scale_ptr + at, exists, other=0)
                    less = tl.load(less_ptr + at, exists, other=0)
                    a = below(value, top)
                    dx += element_gradient(exp(a), a, scale, less, EXACT)
            far = distance(dx_strides, fd, fh, fw, CHANNELS_INNER, DX_ALIGN)
            tl.store(dx_pointers + far, dx.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def _within(d, h, w, sizes, row_exists, lane_exists, CHANNELS_INNER: tl.constexpr):
    """Which elements of a tile, [row, lane], are within a map of these sizes."""
    row_exists &= (d >= 0) & (d < sizes[1]) & (h >= 0) & (h < sizes[2])
    w_exists = (w >= 0) & (w < sizes[3])
    if CHANNELS_INNER:
        row_exists &= w_exists
    else:
        lane_exists &= w_exists
    return row_exists[:, None] & lane_exists[None, :]


@triton.jit
def _holds(place, kernel, dilation):
    """Whether a window has an element so far from its start."""
    place = tl.full([1], place, tl.int32)
    return (place <= (kernel - 1) * dilation) & (place % dilation == 0)


def why_not(x: Tensor, *constants: Any) -> str | None:
    return _common.why_not(x=x)


def forward(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    gradient: str,
) -> Tensor:
    y = empty_output(x, (*x.shape[:2], *output_sizes(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)))
    if y.numel() == 0:
        return y
    windows = tuple(map(tuple, (kernel_size, stride, padding, dilation)))
    _forward_launch(layout(x), layout(y), windows)(x, y)
    return y


@remembered
def _forward_launch(x_layout: Layout, y_layout: Layout, windows: tuple[tuple[int, ...], ...]) -> Launch:
    plan = Plan([blank(x_layout)], [blank(y_layout)], *windows, loads=4)
    if _overlapping_plan.fits(plan):
        return _overlapping_plan.forward_launch(plan)
    (x,), (y,) = plan.inputs, plan.outputs
    arguments = (x.stride(), y.stride(), plan.rows, plan.lanes, tuple(x.shape[1:]), tuple(y.shape[1:]))
    constants = plan.constants | plan.alignments(X=x, Y=y)
    return Launch(_soft_pool_forward_kernel, plan.programs, arguments, constants)


def backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    gradient: str,
) -> list[Tensor]:
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return [dx]
    windows = tuple(map(tuple, (kernel_size, stride, padding, dilation)))
    first, second = _backward_launches(layout(grad), layout(x), layout(dx), windows, gradient == "exact")
    if second is None:
        first(grad, x, dx)
    else:
        statistics = [_statistic(x, grad) for _ in range(3)]
        first(grad, x, *statistics)
        second(x, *statistics, dx)
    return [dx]


@remembered
def _backward_launches(
    grad_layout: Layout, x_layout: Layout, dx_layout: Layout, windows: tuple[tuple[int, ...], ...], exact: bool
) -> tuple[Launch, Launch | None]:
    """One launch; or, where windows overlap as no single one takes them, one for what their elements need to know of
    each, and one that gathers it."""
    grad, x, dx = map(blank, (grad_layout, x_layout, dx_layout))
    plan = Plan([x, dx], [grad], *windows, loads=2, cover=True)
    if plan.side_by_side:
        return _side_by_side(plan, exact), None
    if _overlapping_plan.fits(plan):
        return _overlapping_plan.backward_launch(plan, exact), None
    plan = Plan([x, dx], [grad, _statistic(x, grad)], *windows, loads=2)
    return _statistics(plan), _gather(plan, exact)


def _statistic(x: Tensor, grad: Tensor) -> Tensor:
    return empty_output(x, grad.shape, dtype=compute_dtype(x))


def _side_by_side(plan: Plan, exact: bool) -> Launch:
    (x, dx), (grad,) = plan.inputs, plan.outputs
    arguments = (
        grad.stride(), x.stride(), dx.stride(), plan.rows, plan.lanes,
        tuple(x.shape[1:]), tuple(grad.shape[1:]), (x.shape[1], *plan.windows),
    )  # fmt: skip
    constants = {**plan.constants, **plan.alignments(X=x, GRAD=grad, DX=dx), "EXACT": exact}
    return Launch(_soft_pool_backward_kernel, plan.programs, arguments, constants)


def _statistics(plan: Plan) -> Launch:
    (x, _), (grad, top) = plan.inputs, plan.outputs
    arguments = (
        grad.stride(), x.stride(), top.stride(), plan.rows, plan.lanes, tuple(x.shape[1:]), tuple(grad.shape[1:]),
    )  # fmt: skip
    constants = plan.constants | plan.alignments(X=x, GRAD=grad, Y=top)
    return Launch(_soft_pool_statistics_kernel, plan.programs, arguments, constants)


def _gather(plan: Plan, exact: bool) -> Launch:
    (x, dx), (grad, top) = plan.inputs, plan.outputs
    programs, rows, lanes, cells, constants = plan.gather()
    arguments = (
        x.stride(), top.stride(), dx.stride(), rows, lanes, tuple(x.shape[1:]), tuple(grad.shape[1:]),
        (x.shape[1], *cells),
    )  # fmt: skip
    constants |= {**plan.alignments(X=x, Y=top, DX=dx), "EXACT": exact}
    return Launch(_soft_pool_gather_kernel, programs, arguments, constants)
