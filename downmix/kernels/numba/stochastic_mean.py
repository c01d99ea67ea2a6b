"""Stochastic pooling in evaluation on the CPU: the expected value of a draw."""

from __future__ import annotations

from typing import Any

from numba import njit
from torch import Tensor

from . import _window_pool as window_pool
from ._vectors import choose, is_infinite, is_nan, larger
from ._window_memory import keep_pair, read
from ._window_plan import why_not_windows
from ._window_walker import Method, add_up, see_largest, walk


@njit(inline="always")
def _see(sums, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """Adds w = a / m and w², of negative values 0; keeps w, or −∞ for a negative value."""
    zero, lowest, tops, endless = values
    value = read(tensors[0], place, edges, lane_step, here)
    weight = choose(endless, zero, larger(value, zero)) / tops
    if keep:
        keep_pair(kept, n, choose(zero > value, lowest, weight), zero)
    return sums[0] + weight, sums[1] + weight * weight, sums[2]


@njit(inline="always")
def _reduce(tensors, out, window, lane_step, padded, kept, keep, constants):
    """y, Σw, Σw² / Σw, and where nothing has a gradient: where the maximum is infinite, which then is y, or 0."""
    zero, lowest, one, nan, _ = constants
    # Outside the map lie zeros, and no value counts as less.
    start, tensors = (zero, is_nan(zero)), (tensors[0], tensors[0])
    tops, nans = walk(see_largest, start, tensors, window, lane_step, padded, kept, keep, (zero, zero))
    tops = choose(nans, nan, tops)
    endless = is_infinite(tops)
    empty = endless | (tops == zero)
    values = zero, lowest, choose(empty, one, tops), endless
    sums, squares, _ = add_up(_see, zero, tensors, window, lane_step, padded, kept, keep, values)
    sums = choose(empty, one, sums)
    mean = squares / sums
    return choose(endless, tops, tops * mean), sums, mean, empty


@njit(inline="always")
def _gradients(found, pair, incoming, constants):
    """g (2w − y / m) / Σw, nothing for negative values."""
    (_, sums, mean, empty), (weight, _), (zero, lowest, _, _, _) = found, pair, constants
    gradient = incoming / sums * (weight + weight - mean)
    return choose(empty | (weight == lowest), zero, gradient), zero


_METHOD = Method("stochastic_mean", _reduce, _gradients)


def why_not(x: Tensor, *window: Any) -> str | None:
    return why_not_windows(_METHOD, x, *window)


def forward(x: Tensor, *window: Any) -> Tensor:
    return window_pool.forward(_METHOD, x, None, window)


def backward(grad: Tensor, x: Tensor, *window: Any) -> list[Tensor]:
    return window_pool.backward(_METHOD, grad, x, None, window)
