"""PiX where each pixel's channels are one run of memory (channels_last): a task is a block of pixels of one sample.

Kernels are made for one reduction, so that the interleaved members of many groups are read at once. A short last
group, and a reduction too large for that, are read one by one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from ._common import compiled_for, memory
from ._launch import arguments, kernel, number_from, tasks
from ._pix_common import BLEND, BY_THRESHOLD, PICK
from ._vector_memory import load, load_members, load_steps, store, store_members, store_steps
from ._vectors import all_lanes, beats, choose, is_nan, lanes_between, larger, members_where, spread


def pixels_a_task(batch: int, space: int) -> int:
    """Enough for a long run of memory, unless that leaves too few tasks to share among threads."""
    return 64 if batch * space >= 4096 else 8


@functools.cache
def forward(unrolled: int, sign: int, element: Any, number: Any) -> Any:
    """The kernel for one reduction, or with 0 for any; for maxima, or with −1 for minima; for one stored dtype, and one
    to compute in."""
    element, number, lanes, real = compiled_for(element, number)
    size = unrolled or 1  # what is never run must compile, too

    @kernel()
    def run(at):
        (
            x_at, y_at, p_at, channels, groups, space, pixels, reduction, tail, mode, threshold, xb, xw, yb, yw,
        ) = arguments(at, 15)  # fmt: skip
        x, y, p = memory(x_at, element), memory(y_at, element), memory(p_at, number)
        constants = spread(real(sign)), spread(real(np.nan)), spread(real(1)), spread(real(number_from(threshold)))
        blocks = (space + pixels - 1) // pixels
        rule = channels, groups, reduction, tail, mode, constants, unrolled, size
        for task in tasks(at):
            b, block = task // blocks, task % blocks
            for i in range(block * pixels, min((block + 1) * pixels, space)):
                fuse_pixel(x, b * xb + i * xw, y, b * yb + i * yw, p, b * groups, rule, real, lanes, number)

    return run


@njit(inline="always")
def fuse_pixel(x, row, y, out, p, chance, rule, real, lanes, number):
    """Writes the output channels of one pixel, whose channels are at ``row`` and whose sample's probabilities at
    ``chance``."""
    channels, groups, reduction, tail, mode, constants, unrolled, size = rule
    whole = channels // reduction
    full, divisor = whole // lanes * lanes if unrolled else 0, real(reduction)
    for g in range(0, full, lanes):
        mask = all_lanes(number)
        top, values = _reduce_members(x, row + g * reduction, size, constants, mask)
        value = _fuse(load(p, chance + g, mask), top, values, divisor, mode, constants, number)
        store(y, out + g, value, mask)
    for g in range(full, whole, lanes):
        mask = lanes_between(number, 0, whole - g)
        if unrolled:
            top, values = _reduce_members(x, row + g * reduction, size, constants, mask)
        else:
            top, values = _reduce_steps(x, row + g * reduction, reduction, reduction, constants, mask)
        value = _fuse(load(p, chance + g, mask), top, values, divisor, mode, constants, number)
        store(y, out + g, value, mask)
    if whole < groups:
        mask, first = lanes_between(number, 0, 1), whole * reduction
        top, values = _reduce_steps(x, row + first, channels - first, 1, constants, mask)
        value = _fuse(load(p, chance + whole, mask), top, values, real(tail), mode, constants, number)
        store(y, out + whole, value, mask)


@njit(inline="always")
def _reduce_members(x, at, size, constants, mask):
    """Maximum and sum of a group a lane."""
    signs, nan, _, _ = constants
    members = load_members(x, at, size, mask)
    top, values = signs * members[0], members[0]
    nans = is_nan(top)
    for c in range(1, size):
        value = signs * members[c]
        top, values, nans = larger(top, value), values + members[c], nans | is_nan(value)
    return signs * choose(nans, nan, top), values


@njit(inline="always")
def _reduce_steps(x, at, size, step, constants, mask):
    """The same, the groups ``step`` apart."""
    signs, nan, _, _ = constants
    values = load_steps(x, at, step, mask)
    top = signs * values
    nans = is_nan(top)
    for c in range(1, size):
        value = load_steps(x, at + c, step, mask)
        top, values, nans = larger(top, signs * value), values + value, nans | is_nan(value)
    return signs * choose(nans, nan, top), values


@njit(inline="always")
def _picked(share, mode, limit, number):
    if mode == BY_THRESHOLD:
        return limit > share
    return all_lanes(number) if mode == PICK else lanes_between(number, 0, 0)


@njit(inline="always")
def _fuse(share, top, values, size, mode, constants, number):
    _, _, one, limit = constants
    mean = values / spread(size)
    if mode == BLEND:
        return share * top + (one - share) * mean
    return share * choose(_picked(share, mode, limit, number), top, mean)


@functools.cache
def backward(unrolled: int, sign: int, element: Any, number: Any) -> Any:
    """dx, and for each block of pixels its part of dp; see the other layout for the formulas."""
    element, number, lanes, real = compiled_for(element, number)
    size = unrolled or 1  # what is never run must compile, too

    @kernel()
    def run(at):
        (
            grad_at, x_at, dx_at, p_at, dp_at, channels, groups, space, pixels, reduction, tail, mode, threshold,
            gb, gw, xb, xw, db, dw,
        ) = arguments(at, 19)  # fmt: skip
        grad, x, dx = memory(grad_at, element), memory(x_at, element), memory(dx_at, element)
        p, dp = memory(p_at, number), memory(dp_at, number)
        constants = spread(real(sign)), spread(real(0)), spread(real(1)), spread(real(number_from(threshold)))
        blocks, whole = (space + pixels - 1) // pixels, channels // reduction
        full = whole // lanes * lanes if unrolled else 0
        for task in tasks(at):
            b, block = task // blocks, task % blocks
            for i in range(block * pixels, min((block + 1) * pixels, space)):
                row, drow, above = b * xb + i * xw, b * db + i * dw, b * gb + i * gw
                chance, slopes, is_first = b * groups, task * groups, i == block * pixels
                for g in range(0, full, lanes):
                    mask, first = all_lanes(number), g * reduction
                    _differentiate_members(
                        x, row + first, dx, drow + first, size, real(reduction), grad, above + g, p, chance + g,
                        dp, slopes + g, is_first, mode, constants, number, mask,
                    )  # fmt: skip
                for g in range(full, whole, lanes):
                    mask, first = lanes_between(number, 0, whole - g), g * reduction
                    if unrolled:
                        _differentiate_members(
                            x, row + first, dx, drow + first, size, real(reduction), grad, above + g, p, chance + g,
                            dp, slopes + g, is_first, mode, constants, number, mask,
                        )  # fmt: skip
                    else:
                        _differentiate_steps(
                            x, row + first, dx, drow + first, reduction, reduction, real(reduction), grad, above + g,
                            p, chance + g, dp, slopes + g, is_first, mode, constants, number, mask,
                        )  # fmt: skip
                if whole < groups:
                    mask, first = lanes_between(number, 0, 1), whole * reduction
                    _differentiate_steps(
                        x, row + first, dx, drow + first, channels - first, 1, real(tail), grad, above + whole,
                        p, chance + whole, dp, slopes + whole, is_first, mode, constants, number, mask,
                    )  # fmt: skip

    return run


@njit(inline="always")
def _differentiate_members(
    x, at, dx, dat, members_in_group, size, grad, above, p, chance, dp, slopes, is_first, mode, constants, number, mask
):
    signs, none, one, _ = constants
    members = load_members(x, at, members_in_group, mask)
    top, winner, place, values = signs * members[0], none, none, members[0]
    for c in range(1, members_in_group):
        place = place + one
        value = signs * members[c]
        better = beats(value, top)
        top, winner = choose(better, value, top), choose(better, place, winner)
        values = values + members[c]
    to_winner, to_each = _shares(
        signs * top, values, size, grad, above, p, chance, dp, slopes, is_first, mode, constants, number, mask
    )  # fmt: skip
    store_members(dx, dat, members_where(winner, to_winner, to_each, members_in_group), mask)


@njit(inline="always")
def _differentiate_steps(
    x, at, dx, dat, members, step, size, grad, above, p, chance, dp, slopes, is_first, mode, constants, number, mask
):
    signs, none, one, _ = constants
    values = load_steps(x, at, step, mask)
    top, winner, place = signs * values, none, none
    for c in range(1, members):
        place = place + one
        value = load_steps(x, at + c, step, mask)
        better = beats(signs * value, top)
        top, winner = choose(better, signs * value, top), choose(better, place, winner)
        values = values + value
    to_winner, to_each = _shares(
        signs * top, values, size, grad, above, p, chance, dp, slopes, is_first, mode, constants, number, mask
    )  # fmt: skip
    place = none
    for c in range(members):
        store_steps(dx, dat + c, step, choose(winner == place, to_winner, to_each), mask)
        place = place + one


@njit(inline="always")
def _shares(top, values, size, grad, above, p, chance, dp, slopes, is_first, mode, constants, number, mask):
    """The gradients of the winner and of each other member; adds to dp what p multiplies."""
    _, none, one, limit = constants
    share, incoming, mean = load(p, chance, mask), load(grad, above, mask), values / spread(size)
    if mode == BLEND:
        value = top - mean
        to_each = (one - share) / spread(size) * incoming
        to_winner = to_each + share * incoming
    else:
        # Chosen, not multiplied by 0: an infinite gradient would give NaN.
        picked = _picked(share, mode, limit, number)
        value = choose(picked, top, mean)
        to_each = choose(picked, none, share / spread(size) * incoming)
        to_winner = choose(picked, share * incoming, to_each)
    before = none if is_first else load(dp, slopes, mask)
    store(dp, slopes, before + incoming * value, mask)
    return to_winner, to_each
