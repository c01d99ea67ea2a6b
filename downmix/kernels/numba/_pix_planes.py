"""PiX where each channel's map is one run of memory (NCHW): a task is one group of one sample, reduced in registers.

Kernels are made for one reduction where all groups are whole, so that the walk over their members is unrolled.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from ._common import compiled_for, memory
from ._launch import arguments, kernel, number_from, tasks
from ._pix_common import BLEND, BY_THRESHOLD, PICK
from ._vector_memory import load, store
from ._vectors import all_lanes, beats, choose, is_nan, lanes_between, larger, spread, total

_SUM_EVERY = 32  # vectors of products that add up before their sum goes on in float64


@functools.cache
def forward(unrolled: int, sign: int, element: Any, number: Any) -> Any:
    """The kernel for one reduction, or with 0 for any and for a short last group; for maxima, or with −1 for minima;
    for one stored dtype, and one to compute in."""
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        (
            x_at, y_at, p_at, channels, groups, space, _, reduction, tail, mode, threshold, xb, xc, yb, yc,
        ) = arguments(at, 15)  # fmt: skip
        x, y, p = memory(x_at, element), memory(y_at, element), memory(p_at, number)
        signs, nan = spread(real(sign)), spread(real(np.nan))
        for task in tasks(at):
            b, g = task // groups, task % groups
            first = g * reduction
            size = unrolled if unrolled else min(reduction, channels - first)
            divisor = real(tail if g == groups - 1 else reduction)
            rule = size, divisor, p[task], mode, real(number_from(threshold)), signs, nan
            fuse_group(x, b * xb + first * xc, xc, y, b * yb + g * yc, space, rule, real, lanes, number)

    return run


@njit(inline="always")
def fuse_group(x, row, step, y, out, space, rule, real, lanes, number):
    """Writes the map of one output channel; its group's first map is at ``row``, the others ``step`` apart."""
    size, divisor, p, mode, threshold, signs, nan = rule
    pick, share, rest, divisor = _picks(mode, p, threshold), spread(p), spread(real(1) - p), spread(divisor)
    whole = space // lanes * lanes
    for j in range(0, whole, lanes):
        value = _reduce(x, row + j, step, size, signs, nan, share, rest, divisor, pick, mode, all_lanes(number))
        store(y, out + j, value, all_lanes(number))
    if whole < space:
        mask = lanes_between(number, 0, space - whole)
        value = _reduce(x, row + whole, step, size, signs, nan, share, rest, divisor, pick, mode, mask)
        store(y, out + whole, value, mask)


@njit(inline="always")
def _picks(mode, probability, threshold):
    return mode == PICK or (mode == BY_THRESHOLD and probability < threshold)


@njit(inline="always")
def _reduce(x, at, step, size, signs, nan, share, rest, divisor, pick, mode, mask):
    if pick:
        return share * (signs * _top(x, at, step, size, signs, nan, mask))
    if mode == BLEND:
        mean = _sum(x, at, step, size, mask) / divisor
        return share * _top(x, at, step, size, signs, nan, mask) + rest * mean
    return share * (_sum(x, at, step, size, mask) / divisor)


@functools.cache
def backward(unrolled: int, sign: int, element: Any, number: Any) -> Any:
    """dx and dp. A maximum hands p·g to the first winner of its group, a mean p·g/size to each member, a blend both by
    their weights; dp is the sum over the map of g times what p multiplies."""
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        (
            grad_at, x_at, dx_at, p_at, dp_at, channels, groups, space, _, reduction, tail, mode, threshold,
            gb, gc, xb, xc, db, dc,
        ) = arguments(at, 19)  # fmt: skip
        grad, x, dx = memory(grad_at, element), memory(x_at, element), memory(dx_at, element)
        p, dp = memory(p_at, number), memory(dp_at, number)
        constants = spread(real(sign)), spread(real(0)), spread(real(1))
        for task in tasks(at):
            b, g = task // groups, task % groups
            first = g * reduction
            size = unrolled if unrolled else min(reduction, channels - first)
            divisor = real(tail if g == groups - 1 else reduction)
            pick = _picks(mode, p[task], real(number_from(threshold)))
            to_each = (real(1) - p[task] if mode == BLEND else p[task]) / divisor
            rule = pick, mode, spread(p[task]), spread(to_each), spread(divisor)
            row, drow, above = b * xb + first * xc, b * db + first * dc, b * gb + g * gc
            whole = space // lanes * lanes
            slope, slopes = 0.0, spread(real(0))
            for j in range(0, whole, lanes):
                incoming = load(grad, above + j, all_lanes(number))
                slopes = slopes + incoming * _share_out(
                    incoming, x, row + j, xc, dx, drow + j, dc, size, rule, constants, all_lanes(number)
                )
                if (j // lanes + 1) % _SUM_EVERY == 0:
                    slope += total(slopes)
                    slopes = spread(real(0))
            if whole < space:
                mask = lanes_between(number, 0, space - whole)
                incoming = load(grad, above + whole, mask)
                slopes = slopes + incoming * _share_out(
                    incoming, x, row + whole, xc, dx, drow + whole, dc, size, rule, constants, mask
                )
            dp[task] = slope + total(slopes)

    return run


@njit(inline="always")
def _share_out(incoming, x, at, step, dx, dat, dstep, size, rule, constants, mask):
    """Writes the gradients of a group, and returns what p multiplies."""
    pick, mode, share, to_each, divisor = rule
    signs, none, one = constants
    winner, each = none - one, to_each * incoming
    if pick:
        top, winner = _winner(x, at, step, size, constants, mask)
        value, each = signs * top, none
    else:
        value = _sum(x, at, step, size, mask) / divisor
        if mode == BLEND:
            top, winner = _winner(x, at, step, size, constants, mask)
            value = top - value
    to_winner, place = each + share * incoming, none
    for c in range(size):
        store(dx, dat + c * dstep, choose(winner == place, to_winner, each), mask)
        place = place + one
    return value


@njit(inline="always")
def _top(x, at, step, size, signs, nan, mask):
    top = signs * load(x, at, mask)
    nans = is_nan(top)
    for c in range(1, size):
        value = signs * load(x, at + c * step, mask)
        top, nans = larger(top, value), nans | is_nan(value)
    return choose(nans, nan, top)


@njit(inline="always")
def _sum(x, at, step, size, mask):
    values = load(x, at, mask)
    for c in range(1, size):
        values = values + load(x, at + c * step, mask)
    return values


@njit(inline="always")
def _winner(x, at, step, size, constants, mask):
    """The largest of each lane's group, and which member it is."""
    signs, none, one = constants
    top, winner, place = signs * load(x, at, mask), none, none
    for c in range(1, size):
        value = signs * load(x, at + c * step, mask)
        place = place + one
        better = beats(value, top)
        top, winner = choose(better, value, top), choose(better, place, winner)
    return top, winner
