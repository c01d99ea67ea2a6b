"""Pooling where rows are runs of memory (NCHW): a task is one channel of one sample, a lane an output of a row.

Kernels are made for one stride along a row, 1, 2, or with 0 for any, and forward for the usual windows, whose walk then
is unrolled. An output vector whose windows all lie inside the map needs no masks.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from ._common import ELEMENT, compiled_for, memory
from ._launch import arguments, kernel, number_from, tasks
from ._vector_memory import add, clear, load, store, zip_lanes
from ._vectors import all_lanes, lanes_between, spread
from ._window_memory import all_inside, clip, registers
from ._window_walker import Method, share_out

reduce: Any = None  # a method's own take the places of these
gradients: Any = None
hand_on: Any = None
give: Any = None

_AT_ONCE = 512  # windows whose gradients are written down together; a multiple of all lanes


@functools.cache
def forward(method: Method, window: tuple[int, ...], lane_step: int, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any."""
    second = ELEMENT[number if method.other == "outputs" else element]
    element, number, lanes, real = compiled_for(element, number)
    depth, height, width = window

    @kernel(method.name, reduce=method.reduce)
    def run(at):
        (
            x_at, other_at, y_at, parameter, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW,
            LD, LH, LW, xb, xc, xd, xh,
        ) = arguments(at, 27)  # fmt: skip
        tensors, y = (memory(x_at, element), memory(other_at, second)), memory(y_at, element)
        zero, one, parameter = spread(real(0)), spread(real(1)), spread(real(number_from(parameter)))
        constants = zero, spread(real(-np.inf)), one, spread(real(np.nan)), parameter
        kept, steps = memory(0, number), (LD * xd, LH * xh, LW)
        if depth:
            KD, KH, KW = depth, height, width
        for task in tasks(at):
            base = task // channels * xb + task % channels * xc
            for row in range(OD * OH):
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                (d0, d1), (h0, h1) = clip(i_d, D, KD, LD), clip(i_h, H, KH, LH)
                rows_inside = all_inside((d0, d1, h0, h1), KD, KH)
                out = (task * OD * OH + row) * OW
                for v in range(0, OW, lanes):
                    # The last vector starts early, so that it is whole: some outputs are computed twice.
                    j = max(0, min(v, OW - lanes))
                    left = j * SW - PW
                    start, edges = base + i_d * xd + i_h * xh + left, (left, W, SW, LW)
                    if rows_inside and left >= 0 and j + lanes <= OW and left + (lanes - 1) * SW + (KW - 1) * LW < W:
                        mask = all_lanes(number)
                        places = start, (0, KD, 0, KH, 0, KW), steps, edges, mask
                        found = reduce(tensors, out + j, places, lane_step, False, kept, False, constants)
                        store(y, out + j, found[0], mask)
                    else:
                        mask = lanes_between(number, 0, OW - j)
                        places = start, (d0, d1, h0, h1, 0, KW), steps, edges, mask
                        found = reduce(tensors, out + j, places, lane_step, True, kept, False, constants)
                        store(y, out + j, found[0], mask)

    return run


@functools.cache
def backward(method: Method, window: tuple[int, ...], tiles: bool, lane_step: int, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any. Where windows tile the map, each number is written once; else
    gradients add up, in numbers to compute with.

    The gradients of some windows in a row are first written down, a line for each place of the window, and then added
    up for the map: neighbours get many of them, and each would have to wait until the one before it is stored.
    """
    second = ELEMENT[number if method.other == "outputs" else element]
    element, number, lanes, real = compiled_for(element, number)
    count = 2 if method.other == "values" else 1
    depth, height, width = window
    few, result = 2 * lanes * depth * height * width or 1, element if tiles else number
    functions = {"reduce": method.reduce, "gradients": method.gradients, "give": store if tiles else add}

    @kernel(method.name, **functions, hand_on=(_hand_on_apart, _hand_on_neighbours, _hand_on_pairs)[lane_step])
    def run(at):
        (
            grad_at, x_at, other_at, dx_at, dother_at, parameter, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW,
            PD, PH, PW, LD, LH, LW, xb, xc, xd, xh, _,
        ) = arguments(at, 30)  # fmt: skip
        grad, tensors = memory(grad_at, element), (memory(x_at, element), memory(other_at, second))
        zero, one, parameter = spread(real(0)), spread(real(1)), spread(real(number_from(parameter)))
        constants = zero, spread(real(-np.inf)), one, spread(real(np.nan)), parameter
        kept_array = np.empty(2 * lanes * KD * KH * KW, number.dtype)
        if depth:
            KD, KH, KW = depth, height, width
        # A line begins with zeros, as many as a place is ahead of the first one, and ends with a vector of them. Where
        # numbers are handed on one by one, none are read, and for a large window they would be its square.
        ahead = (KW - 1) * LW // lane_step if lane_step else 0
        length = ahead + min(OW, _AT_ONCE) + lanes
        size = KD * KH * KW * length
        line_array = np.zeros(count * size + ahead, number.dtype)
        kept, lines = memory(kept_array.ctypes.data, number), memory(line_array.ctypes.data, number)
        near = registers(number, few) if depth else kept
        targets = lines, memory(line_array.ctypes.data + size * number.itemsize, number)
        pieces = (OW + _AT_ONCE - 1) // _AT_ONCE
        steps, line_steps = (LD * xd, LH * xh, LW), (KH * KW * length, KW * length, length)
        for task in tasks(at):
            base = task // channels * xb + task % channels * xc
            for t in range(0 if tiles else count):
                clear(memory(dother_at if t else dx_at, result), task * D * H * W, D * H * W)
            for piece in range(OD * OH * pieces):
                row, first = piece // pieces, piece % pieces * _AT_ONCE
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                (d0, d1), (h0, h1) = clip(i_d, D, KD, LD), clip(i_h, H, KH, LH)
                rows_inside = all_inside((d0, d1, h0, h1), KD, KH)
                out, last = (task * OD * OH + row) * OW, min(OW, first + _AT_ONCE)
                if first > max(0, last - _AT_ONCE):
                    clear(lines, 0, count * size)  # longer ones were here
                for v in range(first, last, lanes):
                    j = max(first, min(v, last - lanes))  # as in forward
                    left, line = j * SW - PW, ahead + j - first
                    start, edges = base + i_d * xd + i_h * xh + left, (left, W, SW, LW)
                    if rows_inside and left >= 0 and j + lanes <= last and left + (lanes - 1) * SW + (KW - 1) * LW < W:
                        mask, inside = all_lanes(number), (0, KD, 0, KH, 0, KW)
                        places = start, inside, steps, edges, mask
                        line_places = line, inside, line_steps, edges, mask
                        found = reduce(tensors, out + j, places, lane_step, False, near, True, constants)
                        incoming = load(grad, out + j, mask)
                        share_out(gradients, store, targets, line_places, near, found, incoming, count, constants)
                    else:
                        mask, inside = lanes_between(number, 0, last - j), (d0, d1, h0, h1, 0, KW)
                        places = start, inside, steps, edges, mask
                        line_places = line, inside, line_steps, edges, mask
                        found = reduce(tensors, out + j, places, lane_step, True, kept, True, constants)
                        incoming = load(grad, out + j, mask)
                        share_out(gradients, store, targets, line_places, kept, found, incoming, count, constants)
                geometry = first * SW - PW, W, last - first, KW, SW, LW
                for t in range(count):
                    target = memory(dother_at if t else dx_at, result)
                    for kd in range(d0, d1):
                        for kh in range(h0, h1):
                            at_row = ((task * D + i_d + kd * LD) * H + i_h + kh * LH) * W
                            at_line = t * size + ahead + (kd * KH + kh) * KW * length
                            hand_on(target, at_row, lines, at_line, length, geometry, lanes, zero, give)
        kept_array[0] = line_array[0]  # both live until here

    return run


# What the lines of a row of windows give to a row of the map. The n-th number of a line is for column n · stride +
# kw · dilation + left.
@njit(inline="always")
def _hand_on_neighbours(target, row, lines, at, length, geometry, lanes, zero, give):
    left, W, OW, KW, _, LW = geometry
    for n in range(0, OW + (KW - 1) * LW, lanes):
        total, column = zero, left + n
        for kw in range(KW):
            total = total + load(lines, at + kw * length + n - kw * LW, all_lanes(lines))
        give(target, row + column, total, lanes_between(lines, 0 - column, W - column))


@njit(inline="always")
def _hand_on_pairs(target, row, lines, at, length, geometry, lanes, zero, give):
    left, W, OW, KW, _, LW = geometry
    for n in range(0, OW + (KW - 1) * LW // 2, lanes):
        evens, odds = zero, zero
        for kw in range(KW):
            values = load(lines, at + kw * length + n - kw * LW // 2, all_lanes(lines))
            if kw * LW % 2:
                odds = odds + values
            else:
                evens = evens + values
        evens, odds = zip_lanes(evens, odds)
        column, further = left + 2 * n, left + 2 * n + lanes
        give(target, row + column, evens, lanes_between(lines, 0 - column, W - column))
        give(target, row + further, odds, lanes_between(lines, 0 - further, W - further))


@njit(inline="always")
def _hand_on_apart(target, row, lines, at, length, geometry, lanes, zero, give):
    left, W, OW, KW, SW, LW = geometry
    for kw in range(KW):
        for n in range(OW):
            column = left + n * SW + kw * LW
            here = lanes_between(lines, 0, 1 if 0 <= column < W else 0)  # one number, as a vector: it may become a half
            give(target, row + column, load(lines, at + kw * length + n, here), here)
