"""Launches a pooling kernel on the CPU: windows of many outputs at once, whole rows in NCHW, many channels in
channels_last."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
from ...ops._windows import output_sizes
from . import _column_pixels as column_pixels
from . import _column_planes as column_planes
from . import _window_pixels as pixels
from . import _window_planes as planes
from ._common import ELEMENT
from ._launch import bits, launch
from ._window_walker import Method

# A window this large with so few of them in a row, as in a global pool, leaves nothing to do side by side.
_FEW, _LARGE = 8, 64


def why_not(x: Tensor, kernel_size: list[int], *window: Any, method: Method | None = None) -> str | None:
    if x.dtype not in ELEMENT:
        return f"the CPU kernels don't know {x.dtype}"
    out = output_sizes(x.shape[2:], kernel_size, *window)
    if not (_in_planes(x) and out[-1] < _FEW and math.prod(kernel_size) > _LARGE):
        return None
    if method is None or not _by_columns(method, _geometry(x, kernel_size, *window), in_planes=True):
        return f"windows of {math.prod(kernel_size)} values, {out[-1]} in a row, are no faster than the reference"
    return None


def forward(
    method: Method,
    x: Tensor,
    other: Tensor | None,
    window: Sequence[Any],
    parameter: float = 0.0,
    unrolled: tuple[tuple[int, ...], ...] = (),
) -> Tensor:
    """The output of a method.

    Args:
        method (Method): what happens within a window.
        x (Tensor): what is pooled.
        other (Tensor): the second tensor, as the method says, or None; one of values has x's shape and dtype.
        window (sequence): kernel_size, stride, padding, dilation and ceil_mode.
        parameter (float): a number for the method.
        unrolled (tuple): windows, as of three dimensions, that get code of their own; each takes a second to compile.
    """
    geometry = _geometry(x, *window)
    shape = (*x.shape[:2], *geometry[1][5 - x.dim() :])
    y = torch.empty(shape, dtype=x.dtype, memory_format=memory_format(x))
    if y.numel() == 0:
        return y
    x, other = _readable(method, x, other)
    in_planes = _in_planes(x)
    variant = _variant(x, geometry, in_planes)
    tasks = x.shape[0] * (x.shape[1] if in_planes else math.prod(geometry[1][:2]))
    before, after = (x.data_ptr(), other.data_ptr()), (y.data_ptr(), *_numbers(x, geometry, parameter))
    if _by_columns(method, geometry, in_planes):
        kernels = column_planes if in_planes else column_pixels
        kernel = kernels.forward(method, _with_own_code(geometry, method.columns), *variant)
        if _was_calm(kernel, tasks, x.numel(), before, after):
            return y
    kernels = planes if in_planes else pixels
    kernel = kernels.forward(method, _with_own_code(geometry, unrolled), *variant)
    launch(kernel, tasks, x.numel(), *before, *after)
    return y


def backward(
    method: Method,
    grad: Tensor,
    x: Tensor,
    other: Tensor | None,
    window: Sequence[Any],
    parameter: float = 0.0,
    unrolled: tuple[tuple[int, ...], ...] = (),
) -> list[Tensor]:
    """The gradients of x and, if it holds values, of the other tensor; arguments as of `forward`."""
    second = [other] if other is not None and method.other == "values" else []
    gradients = [torch.empty_like(tensor) for tensor in (x, *second)]
    if grad.numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    geometry = _geometry(x, *window)
    x, other = _readable(method, x, other)
    in_planes, order = _in_planes(x), memory_format(x)
    grad = grad.contiguous(memory_format=order)
    by_columns = _by_columns(method, geometry, in_planes, gradients=True)
    size = _with_own_code(geometry, unrolled)
    tiles = any(size) and _tile(geometry) and not by_columns
    # Where windows add up in the gradients, half precision takes wider ones first; so does a layout that the kernel
    # can't write.
    dtype = x.dtype if tiles else compute_dtype(x)
    sums = [
        gradient
        if gradient.dtype == dtype and gradient.is_contiguous(memory_format=order)
        else torch.empty(x.shape, dtype=dtype, memory_format=order)
        for gradient in gradients
    ]
    block, variant = pixels.channels_a_task(*x.shape[:2]), _variant(x, geometry, in_planes)
    tasks = x.shape[0] * (x.shape[1] if in_planes else -(-x.shape[1] // block))
    before = grad.data_ptr(), x.data_ptr(), other.data_ptr()
    after = sums[0].data_ptr(), sums[-1].data_ptr(), *_numbers(x, geometry, parameter), block
    calm = False
    if by_columns:
        kernels = column_planes if in_planes else column_pixels
        kernel = kernels.backward(method, _with_own_code(geometry, method.columns), *variant)
        calm = _was_calm(kernel, tasks, x.numel(), before, after)
    if not calm:
        kernels = planes if in_planes else pixels
        launch(kernels.backward(method, size, tiles, *variant), tasks, x.numel(), *before, *after)
    pairs = zip(gradients, sums, strict=True)
    return [gradient if total is gradient else gradient.copy_(total) for gradient, total in pairs]


def _geometry(x: Tensor, *window: Any) -> tuple[tuple[int, ...], ...]:
    """Sizes, output sizes, kernel, stride, padding and dilation, each as of three spatial dimensions."""
    kernel_size, stride, padding, dilation, _ = window
    out = output_sizes(x.shape[2:], *window)
    ones, zeros = [1] * (3 - len(out)), [0] * (3 - len(out))
    rows = ((ones, x.shape[2:]), (ones, out), (ones, kernel_size), (ones, stride), (zeros, padding), (ones, dilation))
    return tuple((*lead, *row) for lead, row in rows)


def _tile(geometry: tuple[tuple[int, ...], ...]) -> bool:
    """Whether each place of the map lies in exactly one window."""
    sizes, out, kernel, stride, padding, dilation = geometry
    covered = tuple(o * k for o, k in zip(out, kernel, strict=True))
    return covered == sizes and stride == kernel and not any(padding) and set(dilation) == {1}


def _by_columns(
    method: Method, geometry: tuple[tuple[int, ...], ...], in_planes: bool, gradients: bool = False
) -> bool:
    """Whether sums of columns are the faster way, as measured: for columns of several places that windows of a row
    share, if enough of them do; in NCHW for windows so far apart that their places are read one by one, as then only a
    column's sums are; and for nearly all of LIP, whose general kernels have more to do."""
    _, _, (depth, height, width), (_, _, stride), _, dilation = geometry
    if not method.columns or set(dilation) != {1} or stride > width:
        return False
    if method.other == "values":
        return in_planes or stride < width or width > 2
    shared = (2 * stride if gradients and not in_planes else stride) < width > 2 and depth * height > 1
    apart = in_planes and stride > 2 and (gradients or depth * height > 2)
    return shared or apart


def _was_calm(kernel: Any, tasks: int, elements: int, before: Sequence[int], after: Sequence[int]) -> bool:
    """Runs a kernel of `_column_sums`; whether all it met were values that it can take."""
    restless = ctypes.c_int64(0)
    launch(kernel, tasks, elements, *before, ctypes.addressof(restless), *after)
    return not restless.value


def _with_own_code(geometry: tuple[tuple[int, ...], ...], windows: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The window, if it gets code of its own, or zeros."""
    return geometry[2] if geometry[2] in windows else (0, 0, 0)


def _variant(x: Tensor, geometry: tuple[tuple[int, ...], ...], in_planes: bool) -> tuple[Any, ...]:
    """What else a kernel is made for: a stride along rows of 1, 2, or 0 for any, in NCHW; and dtypes."""
    step = geometry[3][-1] if geometry[3][-1] in (1, 2) else 0
    return (*((step,) if in_planes else ()), x.dtype, compute_dtype(x))


def _numbers(x: Tensor, geometry: tuple[tuple[int, ...], ...], parameter: float) -> tuple[int, ...]:
    return bits(parameter), x.shape[1], *(number for row in geometry for number in row), *_steps(x)


def _steps(x: Tensor) -> tuple[int, ...]:
    """Strides of B, C, D and H in NCHW, of B, D, H and W in channels_last."""
    batch, channels, *space = x.stride()
    space = [*[0] * (3 - len(space)), *space]
    return (batch, channels, *space[:2]) if _in_planes(x) else (batch, *space)


def _readable(method: Method, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with strides that the kernels know: the same for values, the output's for outputs."""
    if not (_in_planes(x) or _in_pixels(x)):
        x = x.contiguous()
    if other is None:
        return x, x
    if method.other == "outputs":
        return x, other.to(compute_dtype(x)).contiguous(memory_format=memory_format(x))
    if other.stride() != x.stride():
        order = memory_format(x)
        x, other = x.contiguous(memory_format=order), other.contiguous(memory_format=order)
    return x, other


def _in_planes(x: Tensor) -> bool:
    """Whether rows are runs of memory, and the output will have them so too."""
    return x.stride(-1) == 1 and memory_format(x) == torch.contiguous_format


def _in_pixels(x: Tensor) -> bool:
    """Whether each pixel's channels are a run of memory."""
    return x.stride(1) == 1 and memory_format(x) != torch.contiguous_format
