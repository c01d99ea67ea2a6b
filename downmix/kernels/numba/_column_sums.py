"""SoftPool and LIP where windows overlap: an exponential is taken once for all windows of a row that share it.

SoftPool is LIP with x as its own logits l. A window is made of columns: KD·KH places of one W. With u = Σ e^l and
v = Σ e^l (x − m), columns add up to a window once they have one m; and what a window gives its places, it first gives
its columns:

    m = max m_c,  u = Σ u_c,  v = Σ v_c + u_c (m_c − m),  y = m + v / u
    a_c = Σ g / u,  b_c = Σ g / u · (m_c − y),  dx = e^l a_c,  dl = e^l (b_c + a_c (x − m_c))

In SoftPool m is the largest x, near to which y is, and in LIP 0, as the mean may be far from it. Differences are taken
before anything is multiplied, so all is as exact as with exponentials of l − max l. But e^l itself has to be a number:
of logits that are calm, of a size of at most 40. A kernel that meets others says so, and `_window_pool` starts again
with the general one.

A kernel keeps lines of a row: of columns m, u and v; in backward then of windows g / u, what is added to x − m, and m;
and at last e^l of the rows of a window.
"""

from __future__ import annotations

from numba import njit

from ._sums import PIECE, carry, settle
from ._vector_memory import add, load, store
from ._vectors import any_beyond, exp_of_calm, farther, larger
from ._window_memory import read

# Of logits, and of values and gradients. e^40 = 2.4e17: the product of a value and a gradient, multiplied or divided by
# that, stays a float32.
CALM, CALM_OTHERS = 40.0, 1e10
LOWEST = -1e30  # the m of a column outside the map; finite, as 0 · (m_c − m) has to be 0
OF_COLUMNS, OF_WINDOWS = 3, 3  # lines


@njit(inline="always")
def sum_column(tensors, at, rows, steps, mask, sizes, constants, kept, keep, both):
    """m, u and v of a column in each lane, and the largest sizes of any logit and value. With ``keep`` it stores e^l,
    in ``kept``: lines, where in them, and the step from row to row. The last of ``constants`` says whether a column may
    have as many places as a `PIECE` has terms."""
    weights, weights_at, row_length = kept
    (x, logits), (size, x_size), (zero, lowest, long) = tensors, sizes, constants
    (d0, d1, h0, h1), (step_d, step_h) = rows, steps
    top = zero
    if not both:
        top = lowest
        for kd in range(d0, d1):
            for kh in range(h0, h1):
                top = larger(top, load(x, at + kd * step_d + kh * step_h, mask))
    sums, means, n, all_sums, all_means = zero, zero, 0, (zero, zero), (zero, zero)
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            place = at + kd * step_d + kh * step_h
            value, logit = load(x, place, mask), load(logits, place, mask)
            weight, size, x_size = exp_of_calm(logit), farther(size, logit), farther(x_size, value)
            if keep:
                store(weights, weights_at, weight, mask)
                weights_at += row_length
            sums, means, n = sums + weight, means + weight * (value - top), n + 1
            if long and n % PIECE == 0:
                all_sums, all_means, sums, means = carry(all_sums, sums), carry(all_means, means), zero, zero
    if long and n >= PIECE:
        sums, means = settle(all_sums, sums, zero), settle(all_means, means, zero)
    return top, sums, means, (size, x_size)


@njit(inline="always")
def restless_ones(sizes):
    """Whether any logit, or any value or gradient, is not calm, from their largest sizes."""
    return any_beyond(sizes[0], CALM) or any_beyond(sizes[1], CALM_OTHERS)


@njit(inline="always")
def store_lines(lines, at, length, vectors, mask):
    """Stores three vectors, in lines of a length each: m, u and v of columns, or what `see_window` reads."""
    store(lines, at, vectors[0], mask)
    store(lines, at + length, vectors[1], mask)
    store(lines, at + 2 * length, vectors[2], mask)


@njit(inline="always")
def join_columns(lines, at, count, step, edges, lane_step, length, mask, constants):
    """m, u and v / u of a window in each lane, from the lines of its ``count`` columns, a step apart."""
    zero, lowest, _ = constants
    top, sums, means, all_sums, all_means = lowest, zero, zero, (zero, zero), (zero, zero)
    for kw in range(count):
        top = larger(top, read(lines, at + kw * step, edges, lane_step, mask))
    for kw in range(count):
        below = read(lines, at + kw * step, edges, lane_step, mask) - top
        weight = read(lines, at + kw * step + length, edges, lane_step, mask)
        mean = read(lines, at + kw * step + 2 * length, edges, lane_step, mask)
        sums, means = sums + weight, means + (mean + weight * below)
        if kw % PIECE == PIECE - 1:
            all_sums, all_means, sums, means = carry(all_sums, sums), carry(all_means, means), zero, zero
    if count >= PIECE:
        sums, means = settle(all_sums, sums, zero), settle(all_means, means, zero)
    return top, sums, means / sums


@njit(inline="always")
def see_window(slopes, shares, top, lines, at, length, slope, mask):
    """a and b of a column in each lane, with one window more, whose lines begin ``at``."""
    share, rest = load(lines, at, mask), load(lines, at + length, mask)
    below = top - load(lines, at + 2 * length, mask)
    return slopes + share, shares + share * (rest + slope * below)


@njit(inline="always")
def give_column(x, at, rows, steps, mask, found, kept, target, both):
    """Adds to the places of a column what its windows give them, as x and as logits: together, where those are one, or
    with ``both`` to a tensor each. ``target`` are both, where in them, and their steps."""
    (d0, d1, h0, h1), (step_d, step_h), (top, slopes, shares) = rows, steps, found
    (weights, weights_at, row_length), (targets, to, (to_step_d, to_step_h)) = kept, target
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            below = load(x, at + kd * step_d + kh * step_h, mask) - top
            weight = load(weights, weights_at, mask)
            weights_at += row_length
            place = to + kd * to_step_d + kh * to_step_h
            add(targets[1], place, weight * (shares + slopes * below), mask)
            if both:
                add(targets[0], place, weight * slopes, mask)
