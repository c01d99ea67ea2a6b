"""PiX where each channel's map is one run of memory (NCHW): a task is one group of one sample.

Kernels are made for one reduction: with a constant, LLVM unrolls the loop over the group and vectorises over the map,
so that a group is reduced in registers. Indices are unsigned, as Numba would wrap negative ones, which keeps LLVM from
vectorising. A short last group, and a reduction too large to unroll, go through the first-level cache.

Arguments: addresses, what types they hold, sizes, the rule (see `pix._rule`), and the steps over samples and channels.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, prange

from ._common import memory, narrow, sum_of, widen
from ._pix_common import BLEND, beats, larger, picks

_CHUNK = 128  # elements of the map at once; of 64 to 4096 the fastest: reads and writes of many rows alternate quickly


@functools.cache
def forward(unrolled: int) -> Any:
    """The kernel for one reduction, or with 0 for any."""

    @njit(parallel=True, cache=True, error_model="numpy")
    def kernel(
        x_at, y_at, p_at, element, number, batch, channels, groups, space,
        reduction, tail, mode, threshold, sign, xb, xc, yb, yc,
    ):  # fmt: skip
        x, y, p = memory(x_at, element), memory(y_at, element), memory(p_at, number)
        real = number.dtype.type
        sign = real(sign)
        step = np.uintp(xc)
        for task in prange(batch * groups):
            b, g = task // groups, task % groups
            first = g * reduction
            size = min(reduction, channels - first)
            divisor = real(tail if g == groups - 1 else reduction)
            probability = p[task]
            pick = picks(mode, probability, real(threshold))
            for start in range(0, space, _CHUNK):
                n = min(_CHUNK, space - start)
                rows = x[b * xb + first * xc + start :]
                out = y[b * yb + g * yc + start :][:n]
                if size != unrolled:
                    top, total = np.empty(n, number.dtype), np.empty(n, number.dtype)
                    _reduce(rows, step, size, sign, top, total)
                    for j in range(n):
                        blend = probability * top[j] + (real(1) - probability) * (total[j] / divisor)
                        value = probability * (sign * top[j] if pick else total[j] / divisor)
                        out[j] = narrow(blend if mode == BLEND else value, y)
                elif pick:
                    for j in range(n):
                        top_j = sign * widen(rows[np.uintp(j)])
                        for c in range(1, unrolled):
                            top_j = larger(top_j, sign * widen(rows[np.uintp(j) + np.uintp(c) * step]))
                        out[j] = narrow(probability * (sign * top_j), y)
                elif mode == BLEND:
                    for j in range(n):
                        top_j = total_j = widen(rows[np.uintp(j)])
                        for c in range(1, unrolled):
                            value = widen(rows[np.uintp(j) + np.uintp(c) * step])
                            top_j = larger(top_j, value)
                            total_j += value
                        out[j] = narrow(probability * top_j + (real(1) - probability) * (total_j / divisor), y)
                else:
                    for j in range(n):
                        total_j = widen(rows[np.uintp(j)])
                        for c in range(1, unrolled):
                            total_j += widen(rows[np.uintp(j) + np.uintp(c) * step])
                        out[j] = narrow(probability * (total_j / divisor), y)
        return y[0]

    return kernel


@njit(inline="always")
def _reduce(rows, step, size, sign, top, total):
    n = len(top)
    for j in range(n):
        total[j] = widen(rows[np.uintp(j)])
        top[j] = sign * total[j]
    for c in range(1, size):
        row = rows[np.uintp(c) * step :][:n]
        for j in range(n):
            value = widen(row[j])
            top[j] = larger(top[j], sign * value)
            total[j] += value


@functools.cache
def backward(unrolled: int) -> Any:
    """dx and dp. A maximum hands p·g to the first winner of its group, a mean p·g/size to each member, a blend both by
    their weights; dp is the sum over the map of g times what p multiplies."""

    @njit(parallel=True, cache=True, error_model="numpy")
    def kernel(
        grad_at, x_at, dx_at, p_at, dp_at, element, number, batch, channels, groups, space,
        reduction, tail, mode, threshold, sign, gb, gc, xb, xc, db, dc,
    ):  # fmt: skip
        grad, x, dx = memory(grad_at, element), memory(x_at, element), memory(dx_at, element)
        p, dp = memory(p_at, number), memory(dp_at, number)
        real = number.dtype.type
        sign = real(sign)
        step, dstep = np.uintp(xc), np.uintp(dc)
        for task in prange(batch * groups):
            b, g = task // groups, task % groups
            first = g * reduction
            size = min(reduction, channels - first)
            divisor = real(tail if g == groups - 1 else reduction)
            probability = p[task]
            pick = picks(mode, probability, real(threshold))
            to_each = (real(1) - probability if mode == BLEND else probability) / divisor
            width = min(space, _CHUNK)
            slopes, values = np.zeros(width, number.dtype), np.empty(width, number.dtype)
            tops, winners = np.empty(width, number.dtype), np.empty(width, np.int32)
            for start in range(0, space, _CHUNK):
                n = min(_CHUNK, space - start)
                rows = x[b * xb + first * xc + start :]
                drows = dx[b * db + first * dc + start :]
                above = grad[b * gb + g * gc + start :][:n]
                if pick or mode == BLEND:
                    if size == unrolled:
                        _find_winners(rows, step, unrolled, sign, tops[:n], winners[:n])
                    else:
                        _update_winners(rows, step, size, sign, tops[:n], winners[:n])
                if not pick:
                    _mean(rows, step, size, divisor, values[:n])
                for j in range(n):
                    value = sign * tops[j] if pick else (tops[j] - values[j] if mode == BLEND else values[j])
                    slopes[j] += widen(above[j]) * value
                for c in range(size):
                    drow, winner = drows[np.uintp(c) * dstep :][:n], np.int32(c)
                    if pick:
                        for j in range(n):
                            drow[j] = narrow(probability * widen(above[j]) if winners[j] == winner else real(0), dx)
                    elif mode == BLEND:
                        for j in range(n):
                            share = to_each + probability if winners[j] == winner else to_each
                            drow[j] = narrow(share * widen(above[j]), dx)
                    else:
                        for j in range(n):
                            drow[j] = narrow(to_each * widen(above[j]), dx)
            dp[task] = sum_of(slopes)
        return dx[0], dp[0]

    return kernel


@njit(inline="always")
def _find_winners(rows, step, size, sign, tops, winners):
    # `size` is a constant here.
    for j in range(len(tops)):
        top, winner = sign * widen(rows[np.uintp(j)]), np.int32(0)
        for c in range(1, size):
            value = sign * widen(rows[np.uintp(j) + np.uintp(c) * step])
            better = beats(value, top)
            top = value if better else top
            winner = np.int32(c) if better else winner
        tops[j], winners[j] = top, winner


@njit(inline="always")
def _update_winners(rows, step, size, sign, tops, winners):
    n = len(tops)
    for j in range(n):
        tops[j], winners[j] = sign * widen(rows[np.uintp(j)]), np.int32(0)
    for c in range(1, size):
        row = rows[np.uintp(c) * step :][:n]
        for j in range(n):
            value = sign * widen(row[j])
            better = beats(value, tops[j])
            tops[j] = value if better else tops[j]
            winners[j] = np.int32(c) if better else winners[j]


@njit(inline="always")
def _mean(rows, step, size, divisor, values):
    n = len(values)
    for j in range(n):
        values[j] = widen(rows[np.uintp(j)])
    for c in range(1, size):
        row = rows[np.uintp(c) * step :][:n]
        for j in range(n):
            values[j] += widen(row[j])
    for j in range(n):
        values[j] /= divisor
