"""What the pooling kernels share in both layouts: how a window is walked, and what a method brings.

Many windows are done side by side, a lane each: neighbouring outputs of a row (NCHW), or channels of one output
(channels_last). How a window lies in memory is a tuple, ``window``: ``at``, where it starts; ``ranges``, from where to
where its places run in D, H and W; ``steps`` between them; and for NCHW ``edges``, by which the lanes are found whose
place lies in the map, not in the padding: the input index of the first lane's window, the map's width, stride and
dilation. ``mask`` are the lanes that have a window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from ._sums import PIECE, carry, settle
from ._vector_memory import prefetch
from ._vectors import choose, is_nan, larger
from ._window_memory import inside, kept_pair, place_of, read

_AHEAD = 512  # numbers


class Method(NamedTuple):
    """The arithmetic of one window, as functions compiled with ``inline="always"``.

    - ``other``: what the second tensor holds: "nothing" (there is none), "values" (a number for each of x), or
      "outputs" (one for each output, in numbers to compute with, and without a gradient).
    - ``reduce(tensors, out, window, lane_step, padded, kept, keep, constants)``: a tuple of vectors, the output first.
      ``tensors`` are two inputs of the method, one below the other where x's places hold for both; ``out`` is the place
      of the outputs. With ``keep`` it stores for each place a pair of vectors, by `keep_pair`.
    - ``gradients(found, pair, incoming, constants)``: of one place, for the first and the second tensor, from what
      `reduce` found and kept.
    - ``unrolled``, ``unrolled_backward``, and for SoftPool and LIP, which `_column_sums` can do as well, ``columns``:
      the windows, as of three dimensions, that get code of their own there; each takes a second to compile.
    """

    name: str
    reduce: Any
    gradients: Any
    other: str = "nothing"
    unrolled: tuple[tuple[int, ...], ...] = ()
    unrolled_backward: tuple[tuple[int, ...], ...] = ()
    columns: tuple[tuple[int, ...], ...] = ()


@njit(inline="always")
def walk(visit, state, tensors, window, lane_step, padded, kept, keep, values):
    """``state`` after ``visit`` has seen each place; ``values`` are what it needs."""
    at, (d0, d1, h0, h1, w0, w1), steps, edges, mask = window
    n = 0
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            for kw in range(w0, w1):
                here = inside(kw, edges, lane_step, padded, mask)
                place = place_of(at, kd, kh, kw, steps)
                state = visit(state, tensors, place, here, edges, lane_step, kept, n, keep, values)
                n += 1
    return state


@njit(inline="always")
def add_up(visit, third, tensors, window, lane_step, padded, kept, keep, values):
    """Two sums over all places, and what ``third`` has become; the first two ``values`` are 0 and −∞."""
    at, (d0, d1, h0, h1, w0, w1), steps, edges, mask = window
    zero, nothing = values[0], values[0] / values[1]  # −0: to add to it, unlike to 0, is nothing to compute
    piece, firsts, seconds, n = (nothing, nothing, third), (zero, zero), (zero, zero), 0
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            for kw in range(w0, w1):
                here = inside(kw, edges, lane_step, padded, mask)
                place = place_of(at, kd, kh, kw, steps)
                piece = visit(piece, tensors, place, here, edges, lane_step, kept, n, keep, values)
                n += 1
                if n % PIECE == 0:
                    firsts, seconds = carry(firsts, piece[0]), carry(seconds, piece[1])
                    piece = nothing, nothing, piece[2]
    first, second, third = piece
    if n >= PIECE:
        first, second = settle(firsts, first, zero), settle(seconds, second, zero)
    return first, second, third


@njit(inline="always")
def share_out(gradients, give, targets, window, kept, found, incoming, count, constants):
    """Gives the gradients of all places to the first ``count`` targets, in which they lie as ``window`` says; ``give``
    is `store` or `add`."""
    at, (d0, d1, h0, h1, w0, w1), steps, _, mask = window
    n = 0
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            for kw in range(w0, w1):
                pair = kept_pair(kept, n)
                n += 1
                first, second = gradients(found, pair, incoming, constants)
                place = place_of(at, kd, kh, kw, steps)
                give(targets[0], place, first, mask)
                if count == 2:
                    give(targets[1], place, second, mask)


@njit(inline="always")
def ask_ahead(state, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """For `walk`: has what will be read soon fetched; alone, the processor is late with that."""
    prefetch(tensors[0], place + _AHEAD)
    return state


@njit(inline="always")
def see_largest(state, tensors, place, here, edges, lane_step, kept, n, keep, values):
    """For `walk`: the largest value of the last tensor so far, and where one was no number."""
    value = choose(here, read(tensors[1], place, edges, lane_step, here), values[1])
    return larger(state[0], value), state[1] | is_nan(value)
