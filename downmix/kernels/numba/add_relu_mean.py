"""A residual sum, its ReLU and the means of its channels on the CPU: one pass, written over the first summand."""

from __future__ import annotations

import functools
from typing import Any

import torch
from numba import njit
from torch import Tensor

from ...ops._define import compute_dtype
from .._layouts import are_pixels, are_planes
from ._common import ELEMENT, compiled_for, memory
from ._launch import arguments, kernel, launch, tasks
from ._vector_memory import load, store
from ._vectors import all_lanes, lanes_between, larger, spread, total

FEW = 1 << 18  # elements of a map, below which torch's own three operators are as fast or faster
_SUM_EVERY = 32  # vectors that add up before their sum goes on in float64
PIXELS = 32  # of a task in channels_last, whose sum is rounded less than that of all


def why_not(x: Tensor, shortcut: Tensor) -> str | None:
    if x.dtype not in ELEMENT or shortcut.dtype != x.dtype:
        return f"the CPU kernel takes two maps of one floating dtype, got {x.dtype} and {shortcut.dtype}"
    if not shortcut.is_cpu:
        return f"the CPU kernel takes two maps that lie in the CPU's memory, got one on {shortcut.device}"
    if x.dim() != 4 or shortcut.shape != x.shape:
        return f"the CPU kernel takes two maps [B, C, H, W], got {list(x.shape)} and {list(shortcut.shape)}"
    if not (are_planes(x, shortcut) or are_pixels(x, shortcut)):
        return "the CPU kernel takes two maps that are both contiguous or both channels_last"
    if x.numel() < FEW:
        return f"the CPU kernel is no faster for maps of fewer than {FEW} elements"
    return None


def forward(x: Tensor, shortcut: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    space, number = height * width, compute_dtype(x)
    if are_planes(x, shortcut):
        sums = torch.empty((batch, channels), dtype=number)
        run, count, block = planes(x.dtype, number), batch * channels, 0
    else:
        count = batch * -(-space // PIXELS)
        sums = torch.empty((batch, count // batch, channels), dtype=number)
        run, block = pixels(x.dtype, number), PIXELS
    launch(run, count, x.numel(), x.data_ptr(), shortcut.data_ptr(), sums.data_ptr(), channels, space, block)
    return ((sums if block == 0 else sums.sum(1)) / space).to(x.dtype)


@functools.cache
def planes(element: Any, number: Any) -> Any:
    """The kernel where each channel's map is one run of memory, for one stored dtype and one to compute in; a task is a
    map."""
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        x_at, shortcut_at, sums_at, _, space, _ = arguments(at, 6)
        x, shortcut, sums = memory(x_at, element), memory(shortcut_at, element), memory(sums_at, number)
        for task in tasks(at):
            sums[task] = sum_of_plane(x, shortcut, True, task * space, space, real, lanes, number)

    return run


@njit(inline="always")
def sum_of_plane(x, shortcut, has_shortcut, row, space, real, lanes, number):
    """In float64; of ReLU(x + shortcut), which is written over x, where there is a shortcut."""
    added, zero, whole = 0.0, spread(real(0)), space // lanes * lanes
    some = zero
    for j in range(0, whole, lanes):
        some = some + value_of(x, shortcut, has_shortcut, row + j, zero, all_lanes(number))
        if (j // lanes + 1) % _SUM_EVERY == 0:
            added += total(some)
            some = zero
    if whole < space:
        mask = lanes_between(number, 0, space - whole)
        some = some + value_of(x, shortcut, has_shortcut, row + whole, zero, mask)
    return added + total(some)


@functools.cache
def pixels(element: Any, number: Any) -> Any:
    """The kernel where each pixel's channels are one run of memory; a task is a block of pixels of one sample, which
    gives its part of the sums."""
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        x_at, shortcut_at, sums_at, channels, space, block = arguments(at, 6)
        x, shortcut, sums = memory(x_at, element), memory(shortcut_at, element), memory(sums_at, number)
        blocks = (space + block - 1) // block
        for task in tasks(at):
            b, first = task // blocks, task % blocks * block
            pixels = b * space + first, b * space + min(first + block, space)
            sum_pixels(x, shortcut, True, pixels, channels, sums, task * channels, real, lanes, number)

    return run


@njit(inline="always")
def sum_pixels(x, shortcut, has_shortcut, pixels, channels, sums, out, real, lanes, number):
    """Writes the sum of some pixels from ``out`` on; of ReLU(x + shortcut), which is written over x, where there is a
    shortcut."""
    (first, last), zero, whole = pixels, spread(real(0)), channels // lanes * lanes
    for i in range(first, last):
        for c in range(0, whole, lanes):
            mask = all_lanes(number)
            value = value_of(x, shortcut, has_shortcut, i * channels + c, zero, mask)
            store(sums, out + c, value if i == first else load(sums, out + c, mask) + value, mask)
        if whole < channels:
            mask = lanes_between(number, 0, channels - whole)
            value = value_of(x, shortcut, has_shortcut, i * channels + whole, zero, mask)
            store(sums, out + whole, value if i == first else load(sums, out + whole, mask) + value, mask)


@njit(inline="always")
def value_of(x, shortcut, has_shortcut, at, zero, mask):
    value = load(x, at, mask)
    if has_shortcut:
        value = larger(value + load(shortcut, at, mask), zero)  # in this order a NaN stays
        store(x, at, value, mask)
    return value
