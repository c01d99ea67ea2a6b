"""SoftPool's forward pass for one small window: its size is a constant, so LLVM unrolls it, keeps all of a window in
registers and vectorises over a row of outputs (NCHW) or over channels (channels_last).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, prange

from ._common import exp, memory, narrow, widen
from ._soft_pool_lanes import _buffers, _gather_pixels, _input, _soften

WINDOWS = ([2], [3], [2, 2], [3, 3], [2, 2, 2])  # the usual ones; each takes seconds to compile
STEPS = (1, 2)  # strides along a row over which LLVM still reads side by side


@functools.cache
def forward_planes(depth: int, height: int, width: int, stride: int) -> Any:
    """The NCHW kernel for windows of one size and one of `STEPS`, that need no padding and have no gaps in a row."""

    @njit(parallel=True, cache=True, error_model="numpy", fastmath={"contract"})
    def kernel(x_at, y_at, element, pair, number, batch, channels, geometry, xs, ys):
        x, y = memory(x_at, element), memory(y_at, element)
        outs, dilation = geometry[1], geometry[5]
        step_d, step_h = np.uintp(dilation[0] * xs[2]), np.uintp(dilation[1] * xs[3])
        zero = number.dtype.type(0)
        for task in prange(batch * channels):
            b, c = task // channels, task % channels
            for row in range(outs[0] * outs[1]):
                i_d, i_h = _input(row // outs[1], 0, geometry, 0), _input(row % outs[1], 0, geometry, 1)
                start = np.uintp(b * xs[0] + c * xs[1] + i_d * xs[2] + i_h * xs[3])
                out = y[b * ys[0] + c * ys[1] + row * outs[2] :][: outs[2]]
                for j in range(outs[2]):
                    at = start + np.uintp(stride) * np.uintp(j)
                    top = widen(x[at])
                    for kd in range(depth):
                        for kh in range(height):
                            for kw in range(width):
                                value = widen(x[at + np.uintp(kd) * step_d + np.uintp(kh) * step_h + np.uintp(kw)])
                                top = value if (value > top or value != value) else top
                    total, mean = zero, zero
                    for kd in range(depth):
                        for kh in range(height):
                            for kw in range(width):
                                value = widen(x[at + np.uintp(kd) * step_d + np.uintp(kh) * step_h + np.uintp(kw)])
                                difference, weight = exp(value - top)
                                total += weight
                                mean += weight * difference
                    mean = mean / total
                    out[j] = narrow(top + (zero if np.isinf(top) else mean), y)
        return y[0]

    return kernel


@functools.cache
def forward_pixels(depth: int, height: int, width: int) -> Any:
    """The channels_last kernel for windows of one size."""

    @njit(parallel=True, cache=True, error_model="numpy", fastmath={"contract"})
    def kernel(x_at, y_at, element, pair, number, batch, channels, geometry, xs, ys):
        x, y = memory(x_at, element), memory(y_at, element)
        sizes, outs, dilation = geometry[0], geometry[1], geometry[5]
        step_d, step_h = np.uintp(dilation[0] * xs[2]), np.uintp(dilation[1] * xs[3])
        step_w = np.uintp(dilation[2] * xs[4])
        zero = number.dtype.type(0)
        rows = outs[0] * outs[1]
        for task in prange(batch * rows):
            b, od, oh = task // rows, task % rows // outs[1], task % outs[1]
            below, weights, tops, sums, means = _buffers(depth * height * width, channels, number)
            i_d, i_h = _input(od, 0, geometry, 0), _input(oh, 0, geometry, 1)
            rows_inside = (
                i_d >= 0
                and i_h >= 0
                and i_d + (depth - 1) * dilation[0] < sizes[0]
                and i_h + (height - 1) * dilation[1] < sizes[1]
            )
            for ow in range(outs[2]):
                out = y[b * ys[0] + od * ys[2] + oh * ys[3] + ow * ys[4] :][:channels]
                i_w = _input(ow, 0, geometry, 2)
                if rows_inside and i_w >= 0 and i_w + (width - 1) * dilation[2] < sizes[2]:
                    start = np.uintp(b * xs[0] + i_d * xs[2] + i_h * xs[3] + i_w * xs[4])
                    for j in range(channels):
                        at = start + np.uintp(j)
                        top = widen(x[at])
                        for kd in range(depth):
                            for kh in range(height):
                                for kw in range(width):
                                    place = np.uintp(kd) * step_d + np.uintp(kh) * step_h + np.uintp(kw) * step_w
                                    value = widen(x[at + place])
                                    top = value if (value > top or value != value) else top
                        total, mean = zero, zero
                        for kd in range(depth):
                            for kh in range(height):
                                for kw in range(width):
                                    place = np.uintp(kd) * step_d + np.uintp(kh) * step_h + np.uintp(kw) * step_w
                                    difference, weight = exp(widen(x[at + place]) - top)
                                    total += weight
                                    mean += weight * difference
                        mean = mean / total
                        out[j] = narrow(top + (zero if np.isinf(top) else mean), y)
                else:
                    at_sample = x_at + b * xs[0] * element.itemsize
                    _gather_pixels(at_sample, element, geometry, xs, od, oh, ow, ow + 1, channels, below)
                    _soften(below, weights, tops, sums, means, False)
                    for j in range(channels):
                        out[j] = narrow(tops[j] + means[j], y)
        return y[0]

    return kernel
