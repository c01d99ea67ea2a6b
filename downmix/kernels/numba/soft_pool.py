"""SoftPool on the CPU."""

from __future__ import annotations

from typing import Any

from numba import njit
from torch import Tensor

from . import _window_pool as window_pool
from ._vectors import choose, exp, is_infinite, is_nan
from ._window_memory import keep_pair, read
from ._window_plan import why_not_windows
from ._window_walker import Method, add_up, see_largest, walk


@njit(inline="always")
def _see(sums, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """Adds e^{a − m} and e^{a − m} (a − m); keeps a − m and e^{a − m}."""
    _, lowest, tops = values
    value = choose(here, read(tensors[0], place, edges, lane_step, here), lowest)
    difference, weight = exp(value - tops, keep)
    if keep:
        keep_pair(kept, n, difference, weight)
    return sums[0] + weight, sums[1] + weight * difference, sums[2]


@njit(inline="always")
def _reduce(tensors, out, window, lane_step, padded, kept, keep, constants):
    """y, m, Σ e^{a − m} and Σ w (a − m); an infinite maximum is the output itself."""
    zero, lowest, _, nan, _ = constants
    # Said to be one tensor, so that the compiler keeps what the first walk loads for the second.
    start, tensors = (lowest, is_nan(zero)), (tensors[0], tensors[0])
    tops, nans = walk(see_largest, start, tensors, window, lane_step, padded, kept, keep, (zero, lowest))
    sums, means, _ = add_up(_see, zero, tensors, window, lane_step, padded, kept, keep, (zero, lowest, tops))
    tops = choose(nans, nan, tops)
    mean = choose(is_infinite(tops), zero, means / sums)
    return tops + mean, tops, sums, mean


@njit(inline="always")
def _gradients(found, pair, incoming, constants):
    """g·w (1 + a − y), or with parameter 0 g·w; nothing where the maximum is infinite."""
    (_, tops, sums, mean), (difference, weight), (zero, _, one, _, slope) = found, pair, constants
    share, rest = incoming / sums, one - slope * mean
    gradient = choose(is_infinite(tops), zero, share * weight * (rest + slope * difference))
    return gradient, zero


_METHOD = Method(
    "soft_pool",
    _reduce,
    _gradients,
    unrolled=((1, 1, 2), (1, 1, 3), (1, 2, 2), (1, 3, 3), (2, 2, 2)),
    unrolled_backward=((1, 2, 2), (1, 3, 3)),
    columns=((1, 3, 3), (1, 5, 5)),
)


def why_not(x: Tensor, *args: Any) -> str | None:
    return why_not_windows(_METHOD, x, *args[:-1])


def forward(x: Tensor, *args: Any) -> Tensor:
    return window_pool.forward(_METHOD, x, None, args[:-1])


def backward(grad: Tensor, x: Tensor, *args: Any) -> list[Tensor]:
    *window, gradient = args
    return window_pool.backward(_METHOD, grad, x, None, window, float(gradient == "exact"))
