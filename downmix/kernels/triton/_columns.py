# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""soft_pool where windows overlap, with one exponential an element for all windows that share it.

With c any one number for all of a lane, each element has a weight w = e^(x − c) and a product p = w (x − c). Columns
add them up, and windows, of which neighbours share most columns, add up columns:

    u = Σ w,  v = Σ p,  t = v / u,  y = c + t

and what a window gives its elements, it first gives its columns:

    dx = w Σ g / u (1 + x − y) = w B_j + p A_j,  A_j = Σ g / u,  B_j = Σ g / u (1 − t)

The rounding of w, p and t grows with |x − c|. So windows have to be calm: their u says that their maximum is near c,
and their gradient is small enough for products. A kernel that finds others takes all of its windows once more, each
with its own maximum.
"""

import triton
import triton.language as tl

from ._common import larger
from ._softmax import LOWEST, exp

# Of calm windows' u: e^±22. A window's largest w is at least a 25th of its u, as it has no more elements.
_LARGEST_SUM: tl.constexpr = tl.constexpr(3.6e9)
_SMALLEST_SUM: tl.constexpr = tl.constexpr(2.8e-10)
_LARGEST_GRADIENT: tl.constexpr = tl.constexpr(1e20)  # g / u, and that times w or p, are numbers
_LARGEST_CENTER: tl.constexpr = tl.constexpr(1e30)


@triton.jit
def center_of(row):
    """c of each lane, which is its window's largest value in a row: that of others is likely to be near."""
    top = row[0]
    for i in tl.static_range(1, len(row)):
        top = tl.maximum(top, row[i])
    return tl.minimum(tl.maximum(top, -_LARGEST_CENTER), _LARGEST_CENTER)


@triton.jit
def weighted(values, center):
    """w and p of each."""
    weights, products = (), ()
    for i in tl.static_range(len(values)):
        difference = larger(values[i] - center, LOWEST)  # of −∞ too, so that its product is 0
        weight = exp(difference)
        weights, products = weights + (weight,), products + (weight * difference,)
    return weights, products


@triton.jit
def columns_of(weights, products, ROWS: tl.constexpr, COLS: tl.constexpr):
    """u and v of each column of ROWS."""
    totals, means = (), ()
    for j in tl.static_range(COLS):
        total, mean = weights[j], products[j]
        for i in tl.static_range(1, ROWS):
            total += weights[i * COLS + j]
            mean += products[i * COLS + j]
        totals, means = totals + (total,), means + (mean,)
    return totals, means


@triton.jit
def window_of(columns, FIRST: tl.constexpr, K_W: tl.constexpr):
    """u, 1 / u and t of the window of K_W columns from FIRST on; the last two of those that are calm."""
    totals, means = columns
    total, mean = totals[FIRST], means[FIRST]
    for k in tl.static_range(1, K_W):
        total += totals[FIRST + k]
        mean += means[FIRST + k]
    inverse = 1 / tl.maximum(total, _SMALLEST_SUM)
    return total, inverse, mean * inverse


@triton.jit
def is_restless(total, exists):
    """Whether a window is not calm; one that the map does not have is as long as its u is no number, or too large, as
    infinity times its gradient of 0 would not be 0."""
    return (total <= _LARGEST_SUM) & ((total >= _SMALLEST_SUM) | (exists == 0)) == 0


@triton.jit
def add_gradients(
    sums, weights, products, grads, w, width, inside, EXACT: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr,
    S_W: tl.constexpr, OWN: tl.constexpr, FIRST: tl.constexpr, COLS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Sums of the OWN columns' gradients, K_H rows of them, with those of a row of windows; and where that has any that
    is not calm.

    Args:
        sums: so far.
        weights: w, K_H rows of COLS columns, the first of the OWN ones at -FIRST.
        products: p of the same.
        grads: of the windows; 0 where there is none.
        w: of the first window.
        width: in windows.
        inside: whether the map has this row of windows.
        EXACT: see ``soft_pool``.
    """
    columns = columns_of(weights, products, K_H, COLS)
    zero = tl.zeros_like(weights[0])
    a, b, restless = (zero,) * OWN, (zero,) * OWN, inside & False
    for n in tl.static_range(WINDOWS):
        total, inverse, mean = window_of(columns, n * S_W, K_W)
        restless |= is_restless(total, inside & ((w + n >= 0) & (w + n < width))[:, None])
        restless |= (tl.abs(grads[n]) <= _LARGEST_GRADIENT) == 0
        scale = grads[n] * inverse
        rest = scale - scale * mean
        more_a, more_b = (), ()
        for j in tl.static_range(OWN):
            if j - FIRST - n * S_W >= 0 and j - FIRST - n * S_W < K_W:  # the window has this column
                more_a, more_b = more_a + (a[j] + scale,), more_b + (b[j] + rest,)
            else:
                more_a, more_b = more_a + (a[j],), more_b + (b[j],)
        a, b = more_a, more_b
    added = ()
    for k in tl.static_range(K_H * OWN):
        weight, product = weights[k // OWN * COLS + k % OWN - FIRST], products[k // OWN * COLS + k % OWN - FIRST]
        gradient = weight * b[k % OWN] + product * a[k % OWN] if EXACT else weight * a[k % OWN]
        added = added + (sums[k] + gradient,)
    return added, restless
