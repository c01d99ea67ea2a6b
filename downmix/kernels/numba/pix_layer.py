"""The gradient of a whole PiX layer on the CPU: that of the fusion, to which one pass adds all others."""

from __future__ import annotations

import functools
from typing import Any

import torch
from numba import njit
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
from .._linear import gradients
from . import pix
from ._common import compiled_for, memory
from ._launch import arguments, kernel, launch, tasks
from ._vector_memory import load, store
from ._vectors import all_lanes, choose, lanes_between, spread
from .pix import why_not

__all__ = ["backward", "why_not"]

_PIXELS = 32  # of a task in channels_last


def backward(
    grad: Tensor,
    x: Tensor,
    p: Tensor,
    *constants: Any,
    slope: float,
    mean: Tensor,
    weight: Tensor,
    has_bias: bool,
    other: Tensor | None,
    rectified: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As :func:`downmix.kernels.triton.pix_layer.backward`."""
    p = p.to(compute_dtype(x, p))
    dx, dp = pix.backward(grad, x, p, *constants)
    of_mean, dweight, dbias = gradients(dp * (slope * p * (1 - p)), mean, weight, has_bias)
    of_mean = of_mean / x.shape[2:].numel()
    order, number = memory_format(dx), compute_dtype(dx)
    of_mean, out = of_mean.to(number).contiguous(), dx.contiguous(memory_format=order)
    other = None if other is None else other.to(dx.dtype).contiguous(memory_format=order)
    behind = x.contiguous(memory_format=order) if rectified else None
    batch, channels, height, width = dx.shape
    if order == torch.contiguous_format:
        make, count = _planes, batch * channels
    else:
        make, count = _pixels, batch * -(-height * width // _PIXELS)
    run = make(other is not None, rectified, dx.dtype, number)
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in (out, of_mean, other, behind))
    launch(run, count, dx.numel(), *addresses, channels, height * width)
    return (dx if out is dx else dx.copy_(out)), dweight, dbias


@functools.cache
def _planes(has_other: bool, rectified: bool, element: Any, number: Any) -> Any:
    """The kernel where each channel's map is one run of memory, with another map to add or without, behind a ReLU or
    not, for one stored dtype and one to compute in; a task is a map."""
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        dx_at, mean_at, other_at, x_at, _, space = arguments(at, 6)
        dx, means = memory(dx_at, element), memory(mean_at, number)
        other, x, zero = memory(other_at, element), memory(x_at, element), spread(real(0))
        whole, every = space // lanes * lanes, all_lanes(number)
        for task in tasks(at):
            row, mean = task * space, spread(means[task])
            for j in range(row, row + whole, lanes):
                _add(dx, j, mean, other, has_other, x, rectified, zero, every)
            if whole < space:
                mask = lanes_between(number, 0, space - whole)
                _add(dx, row + whole, mean, other, has_other, x, rectified, zero, mask)

    return run


@functools.cache
def _pixels(has_other: bool, rectified: bool, element: Any, number: Any) -> Any:
    """The same where each pixel's channels are one run of memory; a task is a block of pixels of one sample."""
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        dx_at, mean_at, other_at, x_at, channels, space = arguments(at, 6)
        dx, means = memory(dx_at, element), memory(mean_at, number)
        other, x, zero = memory(other_at, element), memory(x_at, element), spread(real(0))
        whole, blocks, every = channels // lanes * lanes, (space + _PIXELS - 1) // _PIXELS, all_lanes(number)
        for task in tasks(at):
            b, first = task // blocks, task % blocks * _PIXELS
            for i in range(b * space + first, b * space + min(first + _PIXELS, space)):
                row, mean = i * channels, b * channels
                for c in range(0, whole, lanes):
                    _add(dx, row + c, load(means, mean + c, every), other, has_other, x, rectified, zero, every)
                if whole < channels:
                    mask = lanes_between(number, 0, channels - whole)
                    _add(dx, row + whole, load(means, mean + whole, mask), other, has_other, x, rectified, zero, mask)

    return run


@njit(inline="always")
def _add(dx, at, mean, other, has_other, x, rectified, zero, mask):
    value = load(dx, at, mask) + mean
    if has_other:
        value = value + load(other, at, mask)
    if rectified:
        value = choose(load(x, at, mask) == zero, zero, value)
    store(dx, at, value, mask)
