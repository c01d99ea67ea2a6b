# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportOperatorIssue=false
"""The weights of soft_pool, and what they give each element, for all of its Triton kernels."""

import triton
import triton.language as tl

# exp(LOWEST) is 0, but unlike exp(−∞) it can be multiplied by its exponent.
LOWEST: tl.constexpr = tl.constexpr(-1e4)


@triton.jit
def exp(a):
    # exp2 does without the instructions that only results below 1e-38 need.
    return tl.exp2(a * 1.4426950408889634) if a.dtype == tl.float32 else tl.exp(a)


@triton.jit
def below(value, top):
    """value − top, and no less than exp can turn into 0; that too where it is not a number, as ∞ − ∞.

    So a window's infinity or NaN shows in its maximum alone, which is all that is asked of it.
    """
    return tl.maximum(value - top, LOWEST)


@triton.jit
def for_elements(top, total, mean, grad, exists):
    """m, g / Σ e^(a − m) and y − m − 1 of windows: all that their elements need to know.

    Where no gradient flows they are ∞, 0 and 0, from which any value gets 0. Divisions need not be rounded as torch
    rounds them: the weights that they divide are no nearer to the truth.
    """
    seen = exists & (tl.abs(top) != float("inf"))
    return tl.where(seen, top, float("inf")), tl.where(seen, grad / total, 0.0), tl.where(seen, mean / total - 1, 0.0)


@triton.jit
def element_gradient(weight, a, scale, less, EXACT: tl.constexpr):
    """g w (1 + a − y), or g w where not EXACT, from e^(a − m), a − m and what ``for_elements`` gives."""
    return scale * weight * (a - less) if EXACT else scale * weight
