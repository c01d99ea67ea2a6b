"""Stochastic pooling's draw on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from ...ops._define import compute_dtype
from . import _window_pool as window_pool
from ._vector_memory import load
from ._vectors import choose, is_infinite, is_nan, larger
from ._window_memory import keep_pair, read
from ._window_plan import why_not_windows
from ._window_walker import Method, see_largest, walk


@njit(inline="always")
def _see(state, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """Adds w = a / m, and takes the value until a sum is above the threshold; keeps 1 for the last one taken."""
    zero, one, tops, divisor, special, threshold, total = values
    sums, passed, drawn = state
    value = larger(read(tensors[0], place, edges, lane_step, here), zero)
    # Where one is infinite or no number, all such share the weight, but for padding.
    weight = choose(special, choose(is_nan(value) | (value == tops), one, zero), value / divisor)
    sums = sums + weight
    # The total itself is never passed, however the draw is rounded.
    passes = (sums > threshold) | (sums == total)
    if keep:
        keep_pair(kept, n, choose(passed, zero, choose(passes, one, zero)), zero)
    return sums, passes, choose(passed, drawn, value)


@njit(inline="always")
def _reduce(tensors, out, window, lane_step, padded, kept, keep, constants):
    """y, and where all values are 0."""
    zero, lowest, one, nan, _ = constants
    values, draws, nothing = (tensors[0], tensors[0]), load(tensors[1], out, window[4]), is_nan(zero)
    # Outside the map lie zeros, and no value counts as less.
    start = zero, nothing
    tops, nans = walk(see_largest, start, values, window, lane_step, padded, kept, keep, (zero, zero))
    tops = choose(nans, nan, tops)
    empty, special, never = tops == zero, nans | is_infinite(tops), zero - lowest
    start = zero, nothing, zero
    known = zero, one, tops, choose(empty | special, one, tops), special
    total, _, _ = walk(_see, start, values, window, lane_step, padded, kept, False, (*known, never, never))
    _, _, y = walk(_see, start, values, window, lane_step, padded, kept, keep, (*known, draws * total, total))
    return choose(empty, zero, y), empty


@njit(inline="always")
def _gradients(found, pair, incoming, constants):
    """g for the drawn value."""
    (_, empty), (drawn, _), (zero, _, one, _, _) = found, pair, constants
    return choose(empty, zero, choose(drawn == one, incoming, zero)), zero


_METHOD = Method("stochastic_pool", _reduce, _gradients, "outputs")


def why_not(x: Tensor, draws: Tensor, *window: Any) -> str | None:
    if compute_dtype(x, draws) != compute_dtype(x):
        return f"the CPU kernels compute in {compute_dtype(x)} for {x.dtype}, and draws are {draws.dtype}"
    return why_not_windows(_METHOD, x, *window)


def forward(x: Tensor, draws: Tensor, *window: Any) -> Tensor:
    return window_pool.forward(_METHOD, x, draws, window)


def backward(grad: Tensor, x: Tensor, draws: Tensor, *window: Any) -> list[Tensor]:
    return [*window_pool.backward(_METHOD, grad, x, draws, window), torch.zeros_like(draws)]
