"""SoftPool by sums of columns where rows are runs of memory (NCHW): a task is one channel of one sample, a lane first
a column of a row, and then a window."""

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
from ._vector_memory import add, clear, load, store, zip_lanes
from ._vectors import all_lanes, choose, farther, lanes_between, spread
from ._window_memory import all_inside, clip, read
from ._window_walker import Method

hand_back: Any = None  # one of the functions below takes its place

_AT_ONCE = 256  # windows of a row whose lines are kept; a multiple of all lanes


@functools.cache
def forward(method: Method, window: tuple[int, ...], lane_step: int, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any; and for one stride along a row, 1, 2, or with 0 for any."""
    element, number, lanes, real = compiled_for(element, number)
    depth, height, width = window
    both = method.other == "values"

    @kernel(method.name)
    def run(at):
        (
            x_at, other_at, restless_at, y_at, _, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW,
            _, _, _, xb, xc, xd, xh,
        ) = arguments(at, 28)  # fmt: skip
        x, y, restless = memory(x_at, element), memory(y_at, element), memory(restless_at, INT64)
        tensors = x, (memory(other_at, element) if both else x)
        if depth:
            KD, KH, KW = depth, height, width
        constants = spread(real(0)), spread(real(LOWEST)), KD * KH >= PIECE
        length, row_length = _lengths(OW, SW, KW, lanes)
        line_array = np.zeros(OF_COLUMNS * length, number.dtype)
        lines, every, edges = memory(line_array.ctypes.data, number), all_lanes(number), (0, 0, SW, 1)
        pieces, steps = (OW + _AT_ONCE - 1) // _AT_ONCE, (xd, xh)
        for task in tasks(at):
            base = task // channels * xb + task % channels * xc
            for piece in range(OD * OH * pieces):
                if restless[0]:
                    break
                row, first = piece // pieces, piece % pieces * _AT_ONCE
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                rows = (*clip(i_d, D, KD, 1), *clip(i_h, H, KH, 1))
                windows, left = min(OW - first, _AT_ONCE), first * SW - PW
                start, line = (
                    base + i_d * xd + i_h * xh + left,
                    (left, W, (windows - 1) * SW + KW, lanes, length, row_length),
                )
                sizes = _sum_columns(tensors, start, rows, (KD, KH), steps, constants, lines, line, False, both)
                if restless_ones(sizes):
                    restless[0] = 1
                out = (task * OD * OH + row) * OW + first
                for j in range(0, windows, lanes):
                    mask = lanes_between(number, 0, windows - j)
                    top, _, mean = join_columns(lines, j * SW, KW, 1, edges, lane_step, length, every, constants)
                    store(y, out + j, top + mean, mask)
        line_array[0] = 0  # lives until here

    return run


@functools.cache
def backward(method: Method, window: tuple[int, ...], lane_step: int, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any; and for one stride along a row, 1, 2, or with 0 for any."""
    element, number, lanes, real = compiled_for(element, number)
    depth, height, width = window
    both = method.other == "values"

    @kernel(f"{method.name}.{lane_step}", hand_back={1: _to_neighbours, 2: _to_pairs}.get(lane_step, _to_any))
    def run(at):
        (
            grad_at, x_at, other_at, restless_at, dx_at, dother_at, parameter, channels, D, H, W, OD, OH, OW,
            KD, KH, KW, SD, SH, SW, PD, PH, PW, _, _, _, xb, xc, xd, xh, _,
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
        length, row_length = _lengths(OW, SW, KW, lanes)
        line_array = np.zeros((OF_COLUMNS + OF_WINDOWS) * length + KD * KH * row_length, number.dtype)
        lines, every, edges = memory(line_array.ctypes.data, number), all_lanes(number), (0, 0, SW, 1)
        # A line of windows begins with zeros, as many as a column may look back, and ends with them.
        of_windows, weights = OF_COLUMNS * length + KW, (OF_COLUMNS + OF_WINDOWS) * length
        pieces, steps, to_steps = (OW + _AT_ONCE - 1) // _AT_ONCE, (xd, xh), (H * W, W)
        for task in tasks(at):
            base = task // channels * xb + task % channels * xc
            clear(targets[1], task * D * H * W, D * H * W)
            if both:
                clear(targets[0], task * D * H * W, D * H * W)
            for piece in range(OD * OH * pieces):
                if restless[0]:
                    break
                row, first = piece // pieces, piece % pieces * _AT_ONCE
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                rows = (*clip(i_d, D, KD, 1), *clip(i_h, H, KH, 1))
                windows, left = min(OW - first, _AT_ONCE), first * SW - PW
                count = (windows - 1) * SW + KW
                start, line = base + i_d * xd + i_h * xh + left, (left, W, count, lanes, length, row_length)
                size, others = _sum_columns(tensors, start, rows, (KD, KH), steps, constants, lines, line, True, both)
                out = (task * OD * OH + row) * OW + first
                for j in range(0, windows, lanes):
                    mask, to = lanes_between(number, 0, windows - j), of_windows + j
                    top, sums, mean = join_columns(lines, j * SW, KW, 1, edges, lane_step, length, every, constants)
                    incoming = load(grad, out + j, mask)
                    others = farther(others, incoming)
                    # Where no window is, sums may be anything, and those who look there have to find 0.
                    share, rest = choose(mask, incoming / sums, zero), choose(mask, own - slope * mean, zero)
                    store_lines(lines, to, length, (share, rest, top), every)
                clear(lines, of_windows + (windows + lanes - 1) // lanes * lanes, KW + lanes)
                if restless_ones((size, others)):
                    restless[0] = 1
                hand_back(lines, count, of_windows, windows, KW, SW, length, lanes, zero, slope)
                to_start = ((task * D + i_d) * H + i_h) * W + left
                end, whole = min(count, W - left), all_inside(rows, KD, KH)
                for n in range(max(0, -left), end, lanes):
                    slopes, shares = load(lines, n + length, every), load(lines, n + 2 * length, every)
                    found, kept = (load(lines, n, every), slope * slopes, shares), (lines, weights + n, row_length)
                    target = targets, to_start + n, to_steps
                    if whole and n + lanes <= end:
                        give_column(x, start + n, (0, KD, 0, KH), steps, every, found, kept, target, both)
                    else:
                        mask = lanes_between(number, 0, end - n)
                        give_column(x, start + n, rows, steps, mask, found, kept, target, both)
        line_array[0] = 0  # lives until here

    return run


@njit(inline="always")
def _lengths(OW, SW, KW, lanes):
    """Room for a line of columns, with what vectors of windows read and write beyond them; and for a row of e^l."""
    windows = min(_AT_ONCE, OW)
    return (windows + lanes) * SW + 2 * KW + 2 * lanes, (windows - 1) * SW + KW


@njit(inline="always")
def _sum_columns(tensors, at, rows, window, steps, constants, lines, line, keep, both):
    """Writes the lines of columns, and with ``keep`` of all e^l; the largest sizes of any logit and value."""
    left, W, count, lanes, length, row_length = line
    (zero, lowest, _), (KD, KH) = constants, window
    begin, end, whole = max(0, -left), min(count, W - left), all_inside(rows, KD, KH)
    sizes, every, weights = (zero, zero), all_lanes(lines), (OF_COLUMNS + OF_WINDOWS) * length
    for n in range(0, begin, lanes):
        store_lines(lines, n, length, (lowest, zero, zero), every)
    for n in range(begin, end, lanes):
        kept = lines, weights + n, row_length
        if whole and n + lanes <= end:
            top, sums, means, sizes = sum_column(
                tensors, at + n, (0, KD, 0, KH), steps, every, sizes, constants, kept, keep, both
            )
        else:
            mask = lanes_between(lines, 0, end - n)
            top, sums, means, sizes = sum_column(tensors, at + n, rows, steps, mask, sizes, constants, kept, keep, both)
            top, sums, means = choose(mask, top, lowest), choose(mask, sums, zero), choose(mask, means, zero)
        store_lines(lines, n, length, (top, sums, means), every)
    for n in range(end, count, lanes):
        store_lines(lines, n, length, (lowest, zero, zero), every)
    return sizes


# These write a and b of all columns in place of their u and v.
@njit(inline="always")
def _to_neighbours(lines, count, at, windows, KW, SW, length, lanes, zero, slope):
    every = all_lanes(lines)
    for n in range(0, count, lanes):
        top, slopes, shares = load(lines, n, every), zero, zero
        for kw in range(KW):
            slopes, shares = see_window(slopes, shares, top, lines, at + n - kw, length, slope, every)
        store(lines, n + length, slopes, every)
        store(lines, n + 2 * length, shares, every)


@njit(inline="always")
def _to_pairs(lines, count, at, windows, KW, SW, length, lanes, zero, slope):
    every, edges = all_lanes(lines), (0, 0, 2, 1)
    for n in range(0, (count + 1) // 2, lanes):
        even, odd = read(lines, 2 * n, edges, 2, every), read(lines, 2 * n + 1, edges, 2, every)
        even_slopes, even_shares, odd_slopes, odd_shares = zero, zero, zero, zero
        for kw in range(0, KW, 2):
            here = at + n - kw // 2
            even_slopes, even_shares = see_window(even_slopes, even_shares, even, lines, here, length, slope, every)
            if kw + 1 < KW:
                odd_slopes, odd_shares = see_window(odd_slopes, odd_shares, odd, lines, here, length, slope, every)
        slopes, shares = zip_lanes(even_slopes, odd_slopes), zip_lanes(even_shares, odd_shares)
        for half in range(2):
            store(lines, 2 * n + half * lanes + length, slopes[half], every)
            store(lines, 2 * n + half * lanes + 2 * length, shares[half], every)


@njit(inline="always")
def _to_any(lines, count, at, windows, KW, SW, length, lanes, zero, slope):
    one = lanes_between(lines, 0, 1)
    clear(lines, length, 2 * length)
    for n in range(windows):
        for kw in range(KW):
            column = n * SW + kw
            slopes, shares = see_window(zero, zero, load(lines, column, one), lines, at + n, length, slope, one)
            add(lines, column + length, slopes, one)
            add(lines, column + 2 * length, shares, one)
