# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""soft_pool where windows overlap, with one exponential an element for all windows that share it.

A window is made of columns, of which neighbours share most. With a weight e^(x − c) of each element, c any one number
for all of a lane, u = Σ e^(x − c) and v = Σ e^(x − c) (x − m), columns add up to a window once they have one m:

    m = max m_j,  u = Σ u_j,  v = Σ v_j + u_j (m_j − m),  y = m + v / u

and what a window gives its elements, it first gives its columns:

    dx = e^(x − c) Σ g / u (1 + x − y) = e^(x − c) (B_j + A_j (x − m_j)),  A_j = Σ g / u,  B_j = Σ g / u (1 + m_j − y)

Differences are taken before anything is multiplied, so all is as exact as with a window's own e^(x − m), but for the
weights' rounding, which grows with |x − c|. So windows have to be calm: their m is near c, and their gradient small
enough for products. A kernel that finds others takes all of its windows once more, each with its own m.
"""

import triton
import triton.language as tl

from ._common import larger
from ._softmax import LOWEST

# Up to here (x − c) log₂ e is below 32, so that its rounding changes a weight by no more than 7e-7, in float32; and
# g / u, and that times e^(x − c), are numbers.
_FARTHEST: tl.constexpr = tl.constexpr(22.0)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LARGEST_GRADIENT: tl.constexpr = tl.constexpr(1e20)
_SMALLEST: tl.constexpr = tl.constexpr(1e-30)  # what no calm window's sum is below


@triton.jit
def center_of(row):
    """c of each lane, which is its window's largest value in a row: that of others is likely to be near."""
    top = row[0]
    for i in tl.static_range(1, len(row)):
        top = tl.maximum(top, row[i])
    return tl.minimum(tl.maximum(top, LOWEST), -LOWEST)


@triton.jit
def bounded(values):
    """Values of which no difference is infinite: −∞ is LOWEST, whose weight is 0 too."""
    some = ()
    for i in tl.static_range(len(values)):
        some = some + (larger(values[i], LOWEST),)
    return some


@triton.jit
def weights_of(values, center):
    """e^(x − c) of each."""
    weights = ()
    for i in tl.static_range(len(values)):
        if center.dtype == tl.float32:
            # Rounded once: c log₂ e has rounded too, but that is one factor of all weights.
            weight = tl.exp2(tl.fma(values[i], _LOG2_E, -(center * _LOG2_E)))
        else:
            weight = tl.exp(values[i] - center)
        weights = weights + (weight,)
    return weights


@triton.jit
def columns_of(values, weights, ROWS: tl.constexpr, COLS: tl.constexpr):
    """m, u and v of each column of ROWS."""
    tops, totals, means = (), (), ()
    for j in tl.static_range(COLS):
        top, total = values[j], weights[j]
        for i in tl.static_range(1, ROWS):
            top = larger(top, values[i * COLS + j])
            total += weights[i * COLS + j]
        mean = tl.zeros_like(top)
        if ROWS > 1:
            mean = weights[j] * (values[j] - top)
        for i in tl.static_range(1, ROWS):
            mean += weights[i * COLS + j] * (values[i * COLS + j] - top)
        tops, totals, means = tops + (top,), totals + (total,), means + (mean,)
    return tops, totals, means


@triton.jit
def window_of(columns, FIRST: tl.constexpr, K_W: tl.constexpr):
    """m, 1 / u and v / u of the window of K_W columns from FIRST on; numbers too where none of its elements exists."""
    tops, totals, means = columns
    top, total, mean = tops[FIRST], totals[FIRST], means[FIRST]
    for k in tl.static_range(1, K_W):
        top = larger(top, tops[FIRST + k])
    if K_W > 1:
        mean += totals[FIRST] * (tops[FIRST] - top)
    for k in tl.static_range(1, K_W):
        total += totals[FIRST + k]
        mean += totals[FIRST + k] * (tops[FIRST + k] - top) + means[FIRST + k]
    inverse = 1 / tl.maximum(total, _SMALLEST)
    return top, inverse, mean * inverse


@triton.jit
def is_restless(top, center):
    return (tl.abs(top - center) <= _FARTHEST) == 0  # so of NaN too


@triton.jit
def add_gradients(
    sums, values, weights, grads, center, w, width, inside, EXACT: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr,
    S_W: tl.constexpr, OWN: tl.constexpr, FIRST: tl.constexpr, COLS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Sums of the OWN columns' gradients, K_H rows of them, with those of a row of windows; and where that has any that
    is not calm.

    Args:
        sums: so far.
        values: x, K_H rows of COLS columns, the first of the OWN ones at -FIRST.
        weights: theirs.
        grads: of the windows; 0 where there is none.
        center: c.
        w: of the first window.
        width: in windows.
        inside: whether the map has this row of windows.
        EXACT: see ``soft_pool``.
    """
    columns = columns_of(values, weights, K_H, COLS)
    tops, _totals, _means = columns
    zero = tl.zeros_like(center)
    a, b, restless = (zero,) * OWN, (zero,) * OWN, inside & False
    for n in tl.static_range(WINDOWS):
        top, inverse, mean = window_of(columns, n * S_W, K_W)
        exists = inside & ((w + n >= 0) & (w + n < width))[:, None]
        # Large also where there is no window: what lies beyond the last is read, and infinity times 0 would be NaN.
        calm = (top - center <= _FARTHEST) & (tl.abs(grads[n]) <= _LARGEST_GRADIENT)
        restless |= (calm == 0) | (exists & (top - center < -_FARTHEST))
        scale = grads[n] * inverse
        more_a, more_b = (), ()
        for j in tl.static_range(OWN):
            if j - FIRST - n * S_W >= 0 and j - FIRST - n * S_W < K_W:  # the window has this column
                more_a = more_a + (a[j] + scale,)
                more_b = more_b + (b[j] + scale * (tops[j - FIRST] - top - (mean - 1)),)
            else:
                more_a, more_b = more_a + (a[j],), more_b + (b[j],)
        a, b = more_a, more_b
    added = ()
    for k in tl.static_range(K_H * OWN):
        value, weight = values[k // OWN * COLS + k % OWN - FIRST], weights[k // OWN * COLS + k % OWN - FIRST]
        if EXACT:
            gradient = weight * (b[k % OWN] + a[k % OWN] * (value - tops[k % OWN - FIRST]))
        else:
            gradient = weight * a[k % OWN]
        added = added + (sums[k] + gradient,)
    return added, restless
