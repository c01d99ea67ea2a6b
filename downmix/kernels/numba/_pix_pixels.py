"""PiX where each pixel's channels are one run of memory (channels_last): a task is a block of pixels of one sample.

Kernels are made for one reduction: with a constant, LLVM reads the interleaved members of many groups at once. From 8
on, multiples of 4 are first reduced by 4: it reads four interleaved values at once, but not sixteen.

Arguments as in the other layout, with the steps over samples and pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, prange

from ._common import memory, narrow, widen
from ._pix_common import BLEND, beats, larger, picks

PIXELS = 64  # pixels a task


@functools.cache
def forward(unrolled: int) -> Any:
    """The kernel for one reduction, or with 0 for any."""
    inner = 4 if unrolled >= 8 and unrolled % 4 == 0 else 1

    @njit(parallel=True, cache=True, error_model="numpy")
    def kernel(
        x_at, y_at, p_at, element, number, batch, channels, groups, space,
        reduction, tail, mode, threshold, sign, xb, xw, yb, yw,
    ):  # fmt: skip
        x, y, p = memory(x_at, element), memory(y_at, element), memory(p_at, number)
        real = number.dtype.type
        sign = real(sign)
        size = unrolled if unrolled else reduction
        outer = size // inner
        blocks = (space + PIXELS - 1) // PIXELS
        whole = channels // reduction
        for task in prange(batch * blocks):
            b, block = task // blocks, task % blocks
            probability = p[b * groups :][:groups]
            pick = np.empty(groups, np.bool_)
            for g in range(groups):
                pick[g] = picks(mode, probability[g], real(threshold))
            parts = whole * outer if inner > 1 else 0
            tops, totals = np.empty(parts, number.dtype), np.empty(parts, number.dtype)
            for i in range(block * PIXELS, min((block + 1) * PIXELS, space)):
                row, out = x[b * xb + i * xw :][:channels], y[b * yb + i * yw :][:groups]
                for q in range(parts):
                    tops[q], totals[q] = _group(row, q * inner, inner, sign)
                for g in range(whole):
                    if inner > 1:
                        top, total = tops[g * outer], totals[g * outer]
                        for c in range(1, outer):
                            top = larger(top, tops[g * outer + c])
                            total += totals[g * outer + c]
                    else:
                        top, total = _group(row, g * size, size, sign)
                    mean = total / real(size)
                    blend = probability[g] * top + (real(1) - probability[g]) * mean
                    value = probability[g] * (sign * top if pick[g] else mean)
                    out[g] = narrow(blend if mode == BLEND else value, y)
                if whole < groups:
                    top, total = _group(row, whole * size, channels - whole * size, sign)
                    mean = total / real(tail)
                    blend = probability[whole] * top + (real(1) - probability[whole]) * mean
                    value = probability[whole] * (sign * top if pick[whole] else mean)
                    out[whole] = narrow(blend if mode == BLEND else value, y)
        return y[0]

    return kernel


@njit(inline="always")
def _group(row, first, size, sign):
    total = widen(row[first])
    top = sign * total
    for c in range(1, size):
        value = widen(row[first + c])
        top = larger(top, sign * value)
        total += value
    return top, total


@functools.cache
def backward(unrolled: int) -> Any:
    """dx, and for each block of pixels its part of dp; see the other layout for the formulas."""

    @njit(parallel=True, cache=True, error_model="numpy")
    def kernel(
        grad_at, x_at, dx_at, p_at, dp_at, element, number, batch, channels, groups, space,
        reduction, tail, mode, threshold, sign, gb, gw, xb, xw, db, dw,
    ):  # fmt: skip
        grad, x, dx = memory(grad_at, element), memory(x_at, element), memory(dx_at, element)
        p, dp = memory(p_at, number), memory(dp_at, number)
        real = number.dtype.type
        sign = real(sign)
        blocks = (space + PIXELS - 1) // PIXELS
        whole = channels // reduction
        size = unrolled if unrolled else reduction
        for task in prange(batch * blocks):
            b, block = task // blocks, task % blocks
            pick = np.empty(groups, np.bool_)
            to_winner, to_each = np.empty(groups, number.dtype), np.empty(groups, number.dtype)
            for g in range(groups):
                probability = p[b * groups + g]
                divisor = real(tail if g == groups - 1 else reduction)
                pick[g] = picks(mode, probability, real(threshold))
                to_winner[g] = probability if pick[g] or mode == BLEND else real(0)
                to_each[g] = real(0) if pick[g] else (real(1) - probability if mode == BLEND else probability) / divisor
            slopes = dp[task * groups :][:groups]
            slopes[:] = real(0)
            for i in range(block * PIXELS, min((block + 1) * PIXELS, space)):
                row, drow = x[b * xb + i * xw :][:channels], dx[b * db + i * dw :][:channels]
                above = grad[b * gb + i * gw :][:groups]
                for g in range(whole):
                    top, total, winner = _winner(row, g * size, size, sign)
                    mean = total / real(size)
                    value = top - mean if mode == BLEND else (sign * top if pick[g] else mean)
                    incoming = widen(above[g])
                    slopes[g] += incoming * value
                    # Chosen, not multiplied by 0: an infinite gradient would give NaN.
                    from_each = real(0) if pick[g] else to_each[g] * incoming
                    from_winner = to_winner[g] * incoming
                    for c in range(size):
                        share = from_each + (from_winner if winner == np.int32(c) else real(0))
                        drow[g * size + c] = narrow(share, dx)
                if whole < groups:
                    first, members = whole * size, channels - whole * size
                    top, total, winner = _winner(row, first, members, sign)
                    mean = total / real(tail)
                    value = top - mean if mode == BLEND else (sign * top if pick[whole] else mean)
                    incoming = widen(above[whole])
                    slopes[whole] += incoming * value
                    from_each = real(0) if pick[whole] else to_each[whole] * incoming
                    from_winner = to_winner[whole] * incoming
                    for c in range(members):
                        share = from_each + (from_winner if winner == np.int32(c) else real(0))
                        drow[first + c] = narrow(share, dx)
        return dx[0], dp[0]

    return kernel


@njit(inline="always")
def _winner(row, first, size, sign):
    total = widen(row[first])
    top, winner = sign * total, np.int32(0)
    for c in range(1, size):
        value = widen(row[first + c])
        better = beats(sign * value, top)
        top = sign * value if better else top
        winner = np.int32(c) if better else winner
        total += value
    return top, total, winner
