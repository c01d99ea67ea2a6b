"""SoftPool on the CPU: windows of many outputs at once, whole rows in NCHW, many channels in channels_last."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops._define import memory_format
from ...ops.soft_pool import compute_dtype, output_sizes
from . import _soft_pool_lanes as lanes
from . import _soft_pool_unrolled as unrolled
from ._common import ELEMENT, PAIR, set_threads

# A window this large with so few of them in a row, as in a global pool, leaves nothing to do side by side.
_FEW, _LARGE = 8, 64


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
    geometry, out = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    y = torch.empty((*x.shape[:2], *out), dtype=x.dtype, memory_format=memory_format(x))
    if y.numel() == 0:
        return y
    x = _readable(x)
    kernel: Any
    small, window = kernel_size in unrolled.WINDOWS, geometry[2].tolist()
    if _in_planes(x):
        small = small and stride[-1] in unrolled.STEPS and dilation[-1] == 1 and not any(padding) and not ceil_mode
        kernel = unrolled.forward_planes(*window, stride[-1]) if small else lanes.forward_planes
    else:
        kernel = unrolled.forward_pixels(*window) if small else lanes.forward_pixels
    set_threads(x.numel())
    types = (ELEMENT[x.dtype], PAIR[x.dtype], ELEMENT[compute_dtype(x)])
    kernel(x.data_ptr(), y.data_ptr(), *types, *x.shape[:2], geometry, _steps(x), _steps(y))
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
    geometry, _ = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    x = _readable(x)
    in_planes = _in_planes(x)
    grad = grad.contiguous(memory_format=memory_format(x))
    # Windows add up in dx, so half precision takes a wider one first; so does a layout that the kernel can't write.
    dtype = compute_dtype(x)
    fits = dx.dtype == dtype and dx.is_contiguous(memory_format=memory_format(x))
    sums = dx if fits else torch.empty(x.shape, dtype=dtype, memory_format=memory_format(x))
    kernel: Any = lanes.backward_planes if in_planes else lanes.backward_pixels
    set_threads(x.numel())
    kernel(
        *(tensor.data_ptr() for tensor in (grad, x, sums)),
        *(ELEMENT[x.dtype], PAIR[x.dtype], ELEMENT[dtype]),
        *x.shape[:2],
        geometry,
        *(_steps(tensor) for tensor in (grad, x, sums)),
        gradient == "exact",
    )
    return [dx if sums is dx else dx.copy_(sums)]


def _geometry(x: Tensor, *window: Any) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Sizes, output sizes, kernel, stride, padding and dilation, a row each, as of three spatial dimensions."""
    kernel_size, stride, padding, dilation, _ = window
    out = output_sizes(x.shape[2:], *window)
    ones, zeros = [1] * (3 - len(out)), [0] * (3 - len(out))
    rows = ((ones, x.shape[2:]), (ones, out), (ones, kernel_size), (ones, stride), (zeros, padding), (ones, dilation))
    return np.array([[*lead, *row] for lead, row in rows]), out


def _steps(x: Tensor) -> np.ndarray[Any, Any]:
    """Strides of B, C, D, H, W."""
    batch, channels, *space = x.stride()
    return np.array([batch, channels, *[0] * (3 - len(space)), *space])


def _readable(x: Tensor) -> Tensor:
    return x if _in_planes(x) or _in_pixels(x) else x.contiguous()


def _in_planes(x: Tensor) -> bool:
    """Whether rows are runs of memory, and the output will have them so too."""
    return x.stride(-1) == 1 and memory_format(x) == torch.contiguous_format


def _in_pixels(x: Tensor) -> bool:
    """Whether each pixel's channels are a run of memory."""
    return x.stride(1) == 1 and memory_format(x) != torch.contiguous_format
