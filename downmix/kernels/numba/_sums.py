"""Sums of any length, whose rounding does not grow with it: of pieces, each of which is carried with what was lost."""

from __future__ import annotations

from numba import njit

from ._vectors import choose, is_nan

PIECE = 16  # terms that add up before they are carried


@njit(inline="always")
def carry(total, part):
    """A sum and what rounding has left out of it, with ``part`` added (Knuth's two-sum)."""
    whole, lost = total
    result = whole + part
    back = result - whole
    return result, lost + ((whole - (result - back)) + (part - back))


@njit(inline="always")
def settle(total, part, zero):
    """The sum, with ``part`` added; of infinities nothing is lost but numbers."""
    whole, lost = carry(total, part)
    return whole + choose(is_nan(lost), zero, lost)
