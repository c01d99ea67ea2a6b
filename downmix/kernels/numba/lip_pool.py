"""LIP on the CPU."""

from __future__ import annotations

import math
from typing import Any

from numba import njit
from torch import Tensor

from ...ops._define import compute_dtype
from . import _window_pool as window_pool
from ._vectors import choose, exp, is_infinite, is_nan
from ._window_memory import keep_pair, read
from ._window_plan import why_not_windows
from ._window_walker import Method, add_up, see_largest, walk

_UNROLLED = ((1, 2, 2), (1, 3, 3))


@njit(inline="always")
def _see(sums, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """Adds e^{l − m}, e^{l − m} a, and a where that is infinite; keeps e^{l − m}, or −∞ for what is left out, and a."""
    zero, lowest, tops, endless, scale = values
    logit = choose(here, read(tensors[1], place, edges, lane_step, here), lowest)
    value = read(tensors[0], place, edges, lane_step, here)
    # Where the largest logit is infinite, those equal to it share the weight, but for padding.
    logit = choose(endless, choose(here & (logit == tops), zero, lowest), logit)
    left_out = logit == lowest
    _, weight = exp(logit - choose(endless, zero, tops), keep)
    weight, value = choose(left_out, zero, weight * scale), choose(left_out, zero, value)
    infinite = is_infinite(choose(is_nan(tops), zero, value))
    infinity, value = choose(infinite, value, zero), choose(infinite, zero, value)
    if keep:
        keep_pair(kept, n, choose(left_out, lowest, weight), value)
    return sums[0] + weight, sums[1] + weight * value, sums[2] + infinity


@njit(inline="always")
def _reduce(tensors, out, window, lane_step, padded, kept, keep, constants):
    """y, Σ e^{l − m}, the mean of finite values, the sum of infinite ones, and where m is infinite."""
    zero, lowest, _, nan, scale = constants
    start = lowest, is_nan(zero)
    tops, nans = walk(see_largest, start, tensors, window, lane_step, padded, kept, keep, (zero, lowest))
    tops = choose(nans, nan, tops)
    endless = is_infinite(tops)
    values = zero, lowest, tops, endless, scale
    sums, means, infinity = add_up(_see, zero, tensors, window, lane_step, padded, kept, keep, values)
    mean = means / sums
    return choose(infinity == zero, mean, infinity), sums, mean, infinity, endless


@njit(inline="always")
def _gradients(found, pair, incoming, constants):
    """g·w for the values and g·w (a − y) for the logits."""
    (_, sums, mean, infinity, endless), (weight, value), (zero, lowest, _, _, _) = found, pair, constants
    dx, left_out = choose(infinity == zero, incoming / sums * weight, zero), weight == lowest
    return choose(left_out, zero, dx), choose(endless | left_out, zero, dx * (value - mean))


_METHOD = Method("lip_pool", _reduce, _gradients, "values", unrolled=_UNROLLED, columns=_UNROLLED)


def why_not(x: Tensor, logits: Tensor, *window: Any) -> str | None:
    return why_not_windows(_METHOD, x, *window) or why_not_windows(_METHOD, logits, *window)


def forward(x: Tensor, logits: Tensor, *window: Any) -> Tensor:
    dtype = x.dtype
    x, logits = _alike(x, logits)
    return window_pool.forward(_METHOD, x, logits, window, _scale(*window)).to(dtype)


def backward(grad: Tensor, x: Tensor, logits: Tensor, *window: Any) -> list[Tensor]:
    wide = _alike(x, logits)
    found = window_pool.backward(_METHOD, grad.to(wide[0].dtype), *wide, window, _scale(*window))
    return [gradient.to(tensor.dtype) for gradient, tensor in zip(found, (x, logits), strict=True)]


def _alike(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype; where they differ, as under autocast, in that of the arithmetic."""
    if x.dtype == logits.dtype:
        return x, logits
    dtype = compute_dtype(x, logits)
    return x.to(dtype), logits.to(dtype)


def _scale(kernel_size: list[int], *window: Any) -> float:
    """What weights are multiplied by, exactly, so that no sum of products exceeds the largest value."""
    return 2.0 ** -math.ceil(math.log2(math.prod(kernel_size)))
