"""SoftPool by sums of columns where each pixel's channels are a run of memory (channels_last): a lane is a channel of
one column, and then of one window. Tasks are as of `_window_pixels`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from ._column_sums import (
    LOWEST,
    OF_COLUMNS,
    OF_WINDOWS,
    give_column,
    join_columns,
    restless_ones,
    see_window,
    store_lines,
    sum_column,
)
from ._common import compiled_for, memory
from ._launch import INT64, arguments, kernel, number_from, tasks
from ._sums import PIECE
from ._vector_memory import load, prefetch, store
from ._vectors import all_lanes, farther, lanes_between, spread
from ._window_memory import all_inside, clip
from ._window_pixels import clear_channels
from ._window_walker import Method

# The fewest windows of a row, and the most vectors of a pixel's channels, whose lines are kept: few enough for the
# cache, into which fewer of the backward pass's many lines fit, and enough that the memory is read in runs. Wide
# windows take more of a row, as its pieces share columns, too.
_AT_ONCE, _VECTORS, _VECTORS_BACKWARD = 8, 16, 4


@functools.cache
def forward(method: Method, window: tuple[int, ...], element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any."""
    element, number, lanes, real = compiled_for(element, number)
    depth, height, width = window
    both = method.other == "values"

    @kernel(method.name)
    def run(at):
        (
            x_at, other_at, restless_at, y_at, _, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW,
            _, _, _, xb, xd, xh, xw,
        ) = arguments(at, 28)  # fmt: skip
        x, y, restless = memory(x_at, element), memory(y_at, element), memory(restless_at, INT64)
        tensors = x, (memory(other_at, element) if both else x)
        if depth:
            KD, KH, KW = depth, height, width
        constants = spread(real(0)), spread(real(LOWEST)), KD * KH >= PIECE
        at_once = max(_AT_ONCE, 2 * KW)
        wide = min(_VECTORS, (channels + lanes - 1) // lanes) * lanes
        length = ((min(at_once, OW) - 1) * SW + KW) * wide
        line_array = np.empty(OF_COLUMNS * length, number.dtype)
        lines, every, edges = memory(line_array.ctypes.data, number), all_lanes(number), (0, 0, 0, 0)
        parts, pieces, steps = (channels + wide - 1) // wide, (OW + at_once - 1) // at_once, (xd, xh)
        for task in tasks(at):
            b, row = task // (OD * OH), task % (OD * OH)
            i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
            rows = (*clip(i_d, D, KD, 1), *clip(i_h, H, KH, 1))
            for piece in range(parts * pieces):
                if restless[0]:
                    break
                c, first = piece % parts * wide, piece // parts * at_once
                windows, left, some = min(OW - first, at_once), first * SW - PW, min(wide, channels - c)
                start = b * xb + i_d * xd + i_h * xh + left * xw + c
                line = left, W, (windows - 1) * SW + KW, lanes, length, wide
                sizes = _sum_columns(
                    tensors, start, xw, SH * xh, some, rows, (KD, KH), steps, constants, lines, line, False, both
                )
                if restless_ones(sizes):
                    restless[0] = 1
                for ow in range(windows):
                    at_line, out = ow * SW * wide, (task * OW + first + ow) * channels + c
                    for v in range(0, some, lanes):
                        top, _, mean = join_columns(lines, at_line + v, KW, wide, edges, 1, length, every, constants)
                        store(y, out + v, top + mean, lanes_between(number, 0, some - v))
        line_array[0] = 0  # lives until here

    return run


@functools.cache
def backward(method: Method, window: tuple[int, ...], element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any."""
    element, number, lanes, real = compiled_for(element, number)
    depth, height, width = window
    both = method.other == "values"
    wide = _VECTORS_BACKWARD * lanes

    @kernel(method.name)
    def run(at):
        (
            grad_at, x_at, other_at, restless_at, dx_at, dother_at, parameter, channels, D, H, W, OD, OH, OW,
            KD, KH, KW, SD, SH, SW, PD, PH, PW, _, _, _, xb, xd, xh, xw, block,
        ) = arguments(at, 31)  # fmt: skip
        grad, x, restless = memory(grad_at, element), memory(x_at, element), memory(restless_at, INT64)
        tensors = x, (memory(other_at, element) if both else x)
        targets = memory(dx_at, number), memory(dother_at, number)
        zero, slope, own = spread(real(0)), spread(real(number_from(parameter))), spread(real(1))
        if both:
            slope, own = own, zero
        if depth:
            KD, KH, KW = depth, height, width
        constants = zero, spread(real(LOWEST)), KD * KH >= PIECE
        at_once = max(_AT_ONCE, 2 * KW)
        length = ((min(at_once, OW) - 1) * SW + KW) * wide
        line_array = np.empty((OF_COLUMNS + OF_WINDOWS + KD * KH) * length, number.dtype)
        lines, every, edges = memory(line_array.ctypes.data, number), all_lanes(number), (0, 0, 0, 0)
        of_windows, weights = OF_COLUMNS * length, (OF_COLUMNS + OF_WINDOWS) * length
        pieces, steps, to_steps = (OW + at_once - 1) // at_once, (xd, xh), (H * W * channels, W * channels)
        blocks = (channels + block - 1) // block
        for task in tasks(at):
            b, c0 = task // blocks, task % blocks * block
            c1 = min(c0 + block, channels)
            cleared = b * D * H
            parts = (c1 - c0 + wide - 1) // wide
            for piece in range(OD * OH * parts * pieces):
                if restless[0]:
                    break
                row, c, first = piece // (parts * pieces), c0 + piece % parts * wide, piece // parts % pieces * at_once
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                rows = (*clip(i_d, D, KD, 1), *clip(i_h, H, KH, 1))
                windows, left, some = min(OW - first, at_once), first * SW - PW, min(wide, c1 - c)
                end = (b * D + i_d + rows[1] - 1) * H + i_h + rows[3]
                if end > cleared:
                    _clear(targets, cleared * W, end * W, channels, c0, c1, both)
                    cleared = end
                count = (windows - 1) * SW + KW
                start = b * xb + i_d * xd + i_h * xh + left * xw + c
                line = left, W, count, lanes, length, wide
                size, others = _sum_columns(
                    tensors, start, xw, SH * xh, some, rows, (KD, KH), steps, constants, lines, line, True, both
                )
                for ow in range(windows):
                    at_line, out = ow * SW * wide, ((b * OD * OH + row) * OW + first + ow) * channels + c
                    for v in range(0, some, lanes):
                        top, sums, mean = join_columns(lines, at_line + v, KW, wide, edges, 1, length, every, constants)
                        incoming = load(grad, out + v, lanes_between(number, 0, some - v))
                        others, to = farther(others, incoming), of_windows + ow * wide + v
                        store_lines(lines, to, length, (incoming / sums, own - slope * mean, top), every)
                if restless_ones((size, others)):
                    restless[0] = 1
                to_start = (((b * D + i_d) * H + i_h) * W + left) * channels + c
                whole = all_inside(rows, KD, KH)
                for n in range(max(0, -left), min(count, W - left)):
                    nearest = max(n % SW, n - (windows - 1) * SW)  # where in its nearest window the column is
                    for v in range(0, some, lanes):
                        top, slopes, shares = load(lines, n * wide + v, every), zero, zero
                        here = of_windows + (n - nearest) // SW * wide + v
                        for _ in range(nearest, min(KW, n + 1), SW):
                            slopes, shares = see_window(slopes, shares, top, lines, here, length, slope, every)
                            here -= wide
                        found, kept = (top, slope * slopes, shares), (lines, weights + n * wide + v, length)
                        here, target = start + n * xw + v, (targets, to_start + n * channels + v, to_steps)
                        if whole and v + lanes <= some:
                            give_column(x, here, (0, KD, 0, KH), steps, every, found, kept, target, both)
                        else:
                            mask = lanes_between(number, 0, some - v)
                            give_column(x, here, rows, steps, mask, found, kept, target, both)
            _clear(targets, cleared * W, (b + 1) * D * H * W, channels, c0, c1, both)
        line_array[0] = 0  # lives until here

    return run


@njit(inline="always")
def _clear(targets, first_pixel, end, channels, c0, c1, both):
    clear_channels(targets[1], first_pixel, end, channels, c0, c1)
    if both:
        clear_channels(targets[0], first_pixel, end, channels, c0, c1)


@njit(inline="always")
def _sum_columns(tensors, at, step, next_row, some, rows, window, steps, constants, lines, line, keep, both):
    """Writes the lines of columns, and with ``keep`` of all e^l; the largest sizes of any logit and value."""
    left, W, count, lanes, length, wide = line
    (zero, lowest, _), (KD, KH) = constants, window
    sizes, every, weights = (zero, zero), all_lanes(lines), (OF_COLUMNS + OF_WINDOWS) * length
    whole = all_inside(rows, KD, KH)
    for n in range(count):
        for v in range(0, some, lanes):
            here, to, top, sums, means = at + n * step + v, n * wide + v, lowest, zero, zero
            if 0 <= left + n < W:
                # What the next row of windows reads: alone, the processor is late with that.
                for kh in range(rows[2], rows[3]):
                    prefetch(tensors[0], here + kh * steps[1] + next_row)
                kept = lines, weights + to, length
                if whole and v + lanes <= some:
                    top, sums, means, sizes = sum_column(
                        tensors, here, (0, KD, 0, KH), steps, every, sizes, constants, kept, keep, both
                    )
                else:
                    mask = lanes_between(lines, 0, some - v)
                    top, sums, means, sizes = sum_column(
                        tensors, here, rows, steps, mask, sizes, constants, kept, keep, both
                    )
            store_lines(lines, to, length, (top, sums, means), every)
    return sizes
