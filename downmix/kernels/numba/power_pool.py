"""Power average pooling on the CPU, for the powers 1 and 2."""

from __future__ import annotations

from typing import Any

from numba import njit
from torch import Tensor

from . import _window_pool as window_pool
from ._vectors import choose, is_infinite, is_nan, larger, sqrt
from ._window_memory import keep_pair, read
from ._window_plan import why_not_windows
from ._window_walker import Method, add_up, walk


@njit(inline="always")
def _see_largest(state, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """As that of the walker, of absolute values."""
    value = read(tensors[0], place, edges, lane_step, here)
    return larger(state[0], larger(value, values[0] - value)), state[1] | is_nan(value)


@njit(inline="always")
def _see(sums, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """Adds |a / m|^p and 1; keeps a / m."""
    zero, _, one, tops, endless, squared = values
    ratio = choose(endless, zero, read(tensors[0], place, edges, lane_step, here)) / tops
    size = larger(ratio, zero - ratio)
    if keep:
        keep_pair(kept, n, ratio, zero)
    return sums[0] + choose(squared, ratio * ratio, size), sums[1] + choose(here, one, zero), sums[2]


@njit(inline="always")
def _reduce(tensors, out, window, lane_step, padded, kept, keep, constants):
    """y and what g is divided by; an infinite maximum is the output itself."""
    zero, lowest, one, nan, power = constants
    start, squared = (zero, is_nan(zero)), power > one
    tops, nans = walk(_see_largest, start, tensors, window, lane_step, padded, kept, keep, (zero, zero))
    tops = choose(nans, nan, tops)
    endless = is_infinite(tops)
    values = zero, lowest, one, choose(endless | (tops == zero), one, tops), endless, squared
    sums, count, _ = add_up(_see, zero, tensors, window, lane_step, padded, kept, keep, values)
    count = larger(one, count)
    mean = sums / count
    root = choose(squared, sqrt(mean), mean)
    return choose(endless, tops, tops * root), choose(squared, count * root, count)


@njit(inline="always")
def _gradients(found, pair, incoming, constants):
    """g / (n y) a for p = 2, g / n sign(a) for p = 1; nothing for a zero or where the maximum is infinite."""
    (_, divisor), (ratio, _), (zero, _, one, _, power) = found, pair, constants
    sign = choose(ratio > zero, one, choose(zero > ratio, zero - one, ratio))
    gradient = incoming / divisor * choose(power > one, ratio, sign)
    return choose(ratio == zero, zero, gradient), zero


_METHOD = Method("power_pool", _reduce, _gradients)


def why_not(x: Tensor, *args: Any) -> str | None:
    *window, norm_type = args
    if norm_type not in (1.0, 2.0):
        return f"the CPU kernels know the powers 1 and 2, not {norm_type:g}"
    return why_not_windows(_METHOD, x, *window)


def forward(x: Tensor, *args: Any) -> Tensor:
    *window, norm_type = args
    return window_pool.forward(_METHOD, x, None, window, norm_type)


def backward(grad: Tensor, x: Tensor, *args: Any) -> list[Tensor]:
    *window, norm_type = args
    return window_pool.backward(_METHOD, grad, x, None, window, norm_type)
