"""SoftPool on the CPU: windows of many outputs at once, whole rows in NCHW, many channels in channels_last."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
from ...ops._windows import output_sizes
from . import _soft_pool_pixels as pixels
from . import _soft_pool_planes as planes
from ._common import ELEMENT
from ._launch import launch

# A window this large with so few of them in a row, as in a global pool, leaves nothing to do side by side.
_FEW, _LARGE = 8, 64
# The usual windows, for which forward kernels are unrolled; each takes seconds to compile.
_WINDOWS = ((1, 1, 2), (1, 1, 3), (1, 2, 2), (1, 3, 3), (2, 2, 2))


def why_not(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    gradient: str,
) -> str | None:
    if x.dtype not in ELEMENT:
        return f"the CPU kernels don't know {x.dtype}"
    out = output_sizes(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    if _in_planes(x) and out[-1] < _FEW and math.prod(kernel_size) > _LARGE:
        return f"windows of {math.prod(kernel_size)} values, {out[-1]} in a row, are no faster than the reference"
    return None


def forward(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    gradient: str,
) -> Tensor:
    geometry = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    y = torch.empty((*x.shape[:2], *geometry[1][3 - len(kernel_size) :]), dtype=x.dtype, memory_format=memory_format(x))
    if y.numel() == 0:
        return y
    x = _readable(x)
    in_planes, variant = _in_planes(x), (x.dtype, compute_dtype(x))
    window = geometry[2] if geometry[2] in _WINDOWS else (0, 0, 0)
    launch(
        planes.forward(window, _lane_step(stride), *variant) if in_planes else pixels.forward(window, *variant),
        x.shape[0] * (x.shape[1] if in_planes else math.prod(geometry[1][:2])),
        x.numel(),
        *(x.data_ptr(), y.data_ptr(), x.shape[1]),
        *(number for row in geometry for number in row),
        *_steps(x),
    )
    return y


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
    if grad.numel() == 0:
        return [dx.zero_()]
    geometry = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    x = _readable(x)
    in_planes = _in_planes(x)
    grad = grad.contiguous(memory_format=memory_format(x))
    # Windows add up in dx, so half precision takes a wider one first; so does a layout that the kernel can't write.
    dtype = compute_dtype(x)
    fits = dx.dtype == dtype and dx.is_contiguous(memory_format=memory_format(x))
    sums = dx if fits else torch.empty(x.shape, dtype=dtype, memory_format=memory_format(x))
    block = pixels.channels_a_task(*x.shape[:2])
    launch(
        planes.backward(_lane_step(stride), x.dtype, dtype) if in_planes else pixels.backward(x.dtype, dtype),
        x.shape[0] * (x.shape[1] if in_planes else -(-x.shape[1] // block)),
        x.numel(),
        *(grad.data_ptr(), x.data_ptr(), sums.data_ptr(), gradient == "exact", x.shape[1]),
        *(number for row in geometry for number in row),
        *_steps(x),
        block,
    )
    return [dx if sums is dx else dx.copy_(sums)]


def _geometry(x: Tensor, *window: Any) -> tuple[tuple[int, ...], ...]:
    """Sizes, output sizes, kernel, stride, padding and dilation, each as of three spatial dimensions."""
    kernel_size, stride, padding, dilation, _ = window
    out = output_sizes(x.shape[2:], *window)
    ones, zeros = [1] * (3 - len(out)), [0] * (3 - len(out))
    rows = ((ones, x.shape[2:]), (ones, out), (ones, kernel_size), (ones, stride), (zeros, padding), (ones, dilation))
    return tuple((*lead, *row) for lead, row in rows)


def _lane_step(stride: list[int]) -> int:
    return stride[-1] if stride[-1] in (1, 2) else 0


def _steps(x: Tensor) -> tuple[int, ...]:
    """Strides of B, C, D and H in NCHW, of B, D, H and W in channels_last."""
    batch, channels, *space = x.stride()
    space = [*[0] * (3 - len(space)), *space]
    return (batch, channels, *space[:2]) if _in_planes(x) else (batch, *space)


def _readable(x: Tensor) -> Tensor:
    return x if _in_planes(x) or _in_pixels(x) else x.contiguous()


def _in_planes(x: Tensor) -> bool:
    """Whether rows are runs of memory, and the output will have them so too."""
    return x.stride(-1) == 1 and memory_format(x) == torch.contiguous_format


def _in_pixels(x: Tensor) -> bool:
    """Whether each pixel's channels are a run of memory."""
    return x.stride(1) == 1 and memory_format(x) != torch.contiguous_format
