# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""soft_pool where windows overlap, with one exponential an element for all windows that share it.

With a weight w = e^(x − c) of each element, c any one number for all of a lane, m = max x, u = Σ w and
v = Σ w (x − m), the part of a window in each row joins with those of other rows once they have one m:

    m = max m_i,  u = Σ u_i,  v = Σ v_i + u_i (m_i − m),  y = m + v / u

Windows side by side, or one above the other, share most of m and u; and of v too where c stands for m. Then v / u
rounds by |y − c|, and not by |y − m|: too much for float32, but nothing in half precision (FINE says which it is).
From all windows that have it, an element gets

    dx = Σ w g / u (1 + x − y) = w (B + A (x − c)),  A = Σ g / u,  B = Σ g / u (1 + c − y)

The rounding of w grows with |x − c|, and that of dx with |y − c|. So windows have to be calm: their u says that their
m is near c, and their gradient is small enough for products. A kernel that finds others takes all of its windows once
more, each with its own weights.
"""

import triton
import triton.language as tl

from ._common import larger
from ._softmax import LOWEST, exp

# Of calm windows' u: e^±22. A window's largest w is at least a 25th of its u, as it has no more elements.
_LARGEST_SUM: tl.constexpr = tl.constexpr(3.6e9)
_SMALLEST_SUM: tl.constexpr = tl.constexpr(2.8e-10)
_LARGEST_GRADIENT: tl.constexpr = tl.constexpr(1e20)  # g / u, and that times w (x − c), are numbers
_LARGEST_CENTER: tl.constexpr = tl.constexpr(1e10)  # c + LOWEST is less than c


@triton.jit
def center_of(row):
    """c of each lane, which is its window's largest value in a row: that of others is likely to be near."""
    top = row[0]
    for i in tl.static_range(1, len(row)):
        top = tl.maximum(top, row[i])
    return tl.minimum(tl.maximum(top, -_LARGEST_CENTER), _LARGEST_CENTER)


@triton.jit
def weighted(values, center):
    """x, or what is little enough to weigh nothing and is no −∞, of which 0 times would be NaN; and w."""
    bounded, weights = (), ()
    for i in tl.static_range(len(values)):
        value = larger(values[i], center + LOWEST)
        bounded, weights = bounded + (value,), weights + (exp(value - center),)
    return bounded, weights


@triton.jit
def _of_all(values, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr, MAXIMA: tl.constexpr):
    """The sum or maximum of COUNT values."""
    found = values[FIRST]
    for i in tl.static_range(1, COUNT):
        value = values[FIRST + i * STEP]
        found = tl.maximum(found, value) if MAXIMA else found + value
    return found


@triton.jit
def _of_two(
    values, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr, APART: tl.constexpr, MAXIMA: tl.constexpr
):
    """Two of them, of which the second begins APART values later; what both have is taken once."""
    SECOND: tl.constexpr = FIRST + APART * STEP
    if COUNT - APART > 1:
        shared = _of_all(values, SECOND, STEP, COUNT - APART, MAXIMA)
        first = _of_all(values, FIRST, STEP, APART, MAXIMA)
        second = _of_all(values, FIRST + COUNT * STEP, STEP, APART, MAXIMA)
        if MAXIMA:
            first, second = tl.maximum(first, shared), tl.maximum(second, shared)
        else:
            first, second = first + shared, second + shared
    else:
        first, second = _of_all(values, FIRST, STEP, COUNT, MAXIMA), _of_all(values, SECOND, STEP, COUNT, MAXIMA)
    return first, second


@triton.jit
def _around(top, values, weights, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):
    """Σ w (x − m)."""
    mean = tl.zeros_like(top)
    if COUNT > 1:  # else x is m
        for i in tl.static_range(COUNT):
            mean += weights[FIRST + i * STEP] * (values[FIRST + i * STEP] - top)
    return mean


@triton.jit
def _along(
    values, ROWS: tl.constexpr, COLS: tl.constexpr, WINDOWS: tl.constexpr, S_W: tl.constexpr, K_W: tl.constexpr,
    MAXIMA: tl.constexpr,
):  # fmt: skip
    """The sum or maximum of each window in each row."""
    found = ()
    for i in tl.static_range(ROWS):
        for n in tl.static_range(0, WINDOWS - 1, 2):
            found = found + _of_two(values, i * COLS + n * S_W, 1, K_W, S_W, MAXIMA)
        if WINDOWS % 2 == 1:
            found = found + (_of_all(values, i * COLS + (WINDOWS - 1) * S_W, 1, K_W, MAXIMA),)
    return found


@triton.jit
def along_rows(
    values, weights, center, FINE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, WINDOWS: tl.constexpr,
    S_W: tl.constexpr, K_W: tl.constexpr,
):  # fmt: skip
    """m, none of which are kept unless FINE, u and v of each window's part in each of some ROWS."""
    tops, means = (), ()
    if FINE:
        tops = _along(values, ROWS, COLS, WINDOWS, S_W, K_W, True)
        for i in tl.static_range(ROWS * WINDOWS):
            means = means + (_around(tops[i], values, weights, i // WINDOWS * COLS + i % WINDOWS * S_W, 1, K_W),)
    else:
        products = ()
        for i in tl.static_range(ROWS * COLS):
            products = products + (weights[i] * (values[i] - center),)
        means = _along(products, ROWS, COLS, WINDOWS, S_W, K_W, False)
    return tops, _along(weights, ROWS, COLS, WINDOWS, S_W, K_W, False), means


@triton.jit
def _down(
    values, ROWS: tl.constexpr, WINDOWS: tl.constexpr, S_H: tl.constexpr, K_H: tl.constexpr, MAXIMA: tl.constexpr
):
    """The sum or maximum of each window in one or two ROWS of windows."""
    upper, lower = (), ()
    for n in tl.static_range(WINDOWS):
        if ROWS == 2:
            one, other = _of_two(values, n, WINDOWS, K_H, S_H, MAXIMA)
            upper, lower = upper + (one,), lower + (other,)
        else:
            upper = upper + (_of_all(values, n, WINDOWS, K_H, MAXIMA),)
    return upper + lower


@triton.jit
def down_rows(
    tops, totals, means, center, FINE: tl.constexpr, ROWS: tl.constexpr, WINDOWS: tl.constexpr, S_H: tl.constexpr,
    K_H: tl.constexpr,
):  # fmt: skip
    """m, u and v of one or two ROWS of windows, from all parts of ``along_rows``."""
    joint_tops, joint = (center,) * (ROWS * WINDOWS), _down(means, ROWS, WINDOWS, S_H, K_H, False)
    if FINE:
        joint_tops, moved = _down(tops, ROWS, WINDOWS, S_H, K_H, True), ()
        for i in tl.static_range(ROWS * WINDOWS):
            moved = moved + (
                joint[i]
                + _around(joint_tops[i], tops, totals, i // WINDOWS * S_H * WINDOWS + i % WINDOWS, WINDOWS, K_H),
            )
        joint = moved
    return joint_tops, _down(totals, ROWS, WINDOWS, S_H, K_H, False), joint


@triton.jit
def inverse_of(total):
    """1 / u, of windows that are calm."""
    return 1 / tl.maximum(total, _SMALLEST_SUM)


@triton.jit
def extended(least, most, total, exists):
    """The least and the most u so far: of the windows that there are, and of all, as infinity times the gradient of 0
    that others have would not be 0."""
    return tl.minimum(least, tl.where(exists, total, 1.0)), larger(most, total)


@triton.jit
def is_restless(least, most):
    """Whether a window was not calm; also where ``most`` is NaN."""
    return ((least >= _SMALLEST_SUM) & (most <= _LARGEST_SUM)) == 0


@triton.jit
def is_steep(grad):
    """Whether a gradient is too large, or NaN."""
    return (grad <= _LARGEST_GRADIENT) == 0


@triton.jit
def for_columns(
    tops, totals, means, grads, center, OWN: tl.constexpr, FIRST: tl.constexpr, WINDOWS: tl.constexpr,
    S_W: tl.constexpr, K_W: tl.constexpr,
):  # fmt: skip
    """A and B of a lane's OWN columns, of which the windows of one row have the first at -FIRST.

    Args:
        tops, totals, means: m, u and v of the windows.
        grads: of the same; 0 where there is none.
        center: c.
    """
    scales, rests = (), ()
    for n in tl.static_range(WINDOWS):
        inverse = inverse_of(totals[n])
        scale = grads[n] * inverse
        scales, rests = scales + (scale,), rests + (scale * (center - tops[n] - (means[n] * inverse - 1)),)
    a, b = (), ()
    for j in tl.static_range(OWN):
        a = a + (_of_windows(scales, j - FIRST, S_W, K_W),)
        b = b + (_of_windows(rests, j - FIRST, S_W, K_W),)
    return a, b


@triton.jit
def _of_windows(values, COLUMN: tl.constexpr, S_W: tl.constexpr, K_W: tl.constexpr):
    """The sum over all windows that have a column."""
    FIRST: tl.constexpr = -((K_W - 1 - COLUMN) // S_W)
    return _of_all(values, FIRST, 1, COLUMN // S_W - FIRST + 1, False)


@triton.jit
def add_gradients(
    sums, values, weights, center, a, b, EXACT: tl.constexpr, ROWS: tl.constexpr, OWN: tl.constexpr, S_H: tl.constexpr,
    K_H: tl.constexpr,
):  # fmt: skip
    """``sums`` of gradients, from the first row that ROWS of windows have, with what these give: A and B of theirs."""
    added = ()
    for k in tl.static_range(((ROWS - 1) * S_H + K_H) * OWN):
        # Windows of the first row of two, of the second, or of both.
        if ROWS == 1 or k // OWN < S_H:
            scale, rest = a[k % OWN], b[k % OWN]
        elif k // OWN >= K_H:
            scale, rest = a[OWN + k % OWN], b[OWN + k % OWN]
        else:
            scale, rest = a[k % OWN] + a[OWN + k % OWN], b[k % OWN] + b[OWN + k % OWN]
        factor = rest + scale * (values[k] - center) if EXACT else scale
        added = added + (sums[k] + weights[k] * factor,)
    return added
