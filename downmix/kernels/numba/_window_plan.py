"""Plans how a pooling kernel is launched on the CPU: all that follows from a layout and a window."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
from ...ops._windows import output_sizes
from .._layouts import Layout, blank, remembered
from . import _column_pixels as column_pixels
from . import _column_planes as column_planes
from . import _window_pixels as pixels
from . import _window_planes as planes
from ._common import ELEMENT
from ._launch import bits
from ._window_walker import Method

# A window this large with so few of them in a row, as in a global pool, leaves nothing to do side by side.
_FEW, _LARGE = 8, 64

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]


class Plan:
    """What a launch needs but for addresses.

    Args:
        method (Method): what happens within a window.
        layout (Layout): of a tensor that is `in_planes` or `in_pixels`.
        window (Window): kernel_size, stride, padding, dilation and ceil_mode.
        parameter (float): a number for the method.
    """

    backward = False

    def __init__(self, method: Method, layout: Layout, window: Window, parameter: float):
        x = blank(layout)
        self.method, self.in_planes, self.order = method, in_planes(x), memory_format(x)
        self.kernels = planes if self.in_planes else pixels
        self.geometry = _geometry(x, *window)
        _, out, _, stride, *_ = self.geometry
        self.shape = (*x.shape[:2], *out[5 - x.dim() :])
        self.by_columns = _by_columns(method, self.geometry, self.in_planes, self.backward)
        self.tasks = x.shape[0] * (x.shape[1] if self.in_planes else math.prod(out[:2]))
        self.numbers = bits(parameter), x.shape[1], *(number for row in self.geometry for number in row), *_steps(x)
        # What else a kernel is made for: a stride along rows of 1, 2, or 0 for any, in NCHW; and dtypes.
        step = (stride[-1] if stride[-1] in (1, 2) else 0,) if self.in_planes else ()
        self.variant = (*step, x.dtype, compute_dtype(x))

    # Kernels are made when they are first asked for, as each takes a second to compile.
    @functools.cached_property
    def kernel(self) -> Any:
        """The kernel that takes any values."""
        return self.kernels.forward(self.method, self.unrolled(self.method.unrolled), *self.variant)

    @functools.cached_property
    def calm_kernel(self) -> Any:
        """The kernel of `_column_sums`, where it is the faster one."""
        kernels = column_planes if self.in_planes else column_pixels
        make = kernels.backward if self.backward else kernels.forward
        return make(self.method, self.unrolled(self.method.columns), *self.variant)

    def unrolled(self, windows: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        """The window, if it is among these, or zeros."""
        return self.geometry[2] if self.geometry[2] in windows else (0, 0, 0)


class GradientPlan(Plan):
    """The same for gradients, which lie as ``order`` says and have ``dtype`` when they are added up."""

    backward = True

    def __init__(self, method: Method, layout: Layout, window: Window, parameter: float):
        super().__init__(method, layout, window, parameter)
        shape, _, dtype = layout
        block = pixels.channels_a_task(*shape[:2])
        if not self.in_planes:
            self.tasks = shape[0] * -(-shape[1] // block)
        self.numbers = *self.numbers, block
        self.size = self.unrolled(method.unrolled_backward)
        self.tiles = any(self.size) and _tile(self.geometry) and not self.by_columns
        # Where windows add up in the gradients, half precision takes wider ones first.
        self.dtype = dtype if self.tiles else self.variant[-1]

    @functools.cached_property
    def kernel(self) -> Any:
        return self.kernels.backward(self.method, self.size, self.tiles, *self.variant)


plan, gradient_plan = remembered(Plan), remembered(GradientPlan)


def why_not_windows(method: Method, x: Tensor, kernel_size: Sequence[int], *window: Any) -> str | None:
    if x.dtype not in ELEMENT:
        return f"the CPU kernels don't know {x.dtype}"
    if math.prod(kernel_size) <= _LARGE or not in_planes(x):
        return None
    geometry = _geometry(x, kernel_size, *window)
    _, out, *_ = geometry
    if out[-1] >= _FEW or _by_columns(method, geometry, in_planes=True):
        return None
    return f"windows of {math.prod(kernel_size)} values, {out[-1]} in a row, are no faster than the reference"


def in_planes(x: Tensor) -> bool:
    """Whether rows are runs of memory, and the output will have them so too."""
    return (x.stride(-1) == 1 or x.shape[-1] == 1) and memory_format(x) == torch.contiguous_format


def in_pixels(x: Tensor) -> bool:
    """Whether each pixel's channels are a run of memory."""
    return x.stride(1) == 1 and memory_format(x) != torch.contiguous_format


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


def _steps(x: Tensor) -> tuple[int, ...]:
    """Strides of B, C, D and H in NCHW, of B, D, H and W in channels_last."""
    batch, channels, *space = x.stride()
    space = [*[0] * (3 - len(space)), *space]
    return (batch, channels, *space[:2]) if in_planes(x) else (batch, *space)
