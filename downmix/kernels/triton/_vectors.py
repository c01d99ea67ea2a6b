# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
"""What a thread loads at once, as tensors of one element of it each, and back: nothing is exchanged between threads."""

import triton
import triton.language as tl


@triton.jit
def apart(tile, N: tl.constexpr):
    """[row, N · lane] as N tensors [row, lane], of the lanes' first elements and so on; N is a power of two up to 8."""
    if N == 1:
        parts = (tile,)
    else:
        even, odd = tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 2, 2]))
        if N == 2:
            parts = even, odd
        elif N == 4:
            a, c = apart(even, 2)
            b, d = apart(odd, 2)
            parts = a, b, c, d
        else:
            a, c, e, g = apart(even, 4)
            b, d, f, h = apart(odd, 4)
            parts = a, b, c, d, e, f, g, h
    return parts


@triton.jit
def side_by_side(parts, N: tl.constexpr):
    """The opposite of ``apart``."""
    if N == 1:
        tile = parts[0]
    elif N == 2:
        tile = tl.join(parts[0], parts[1])
        tile = tl.reshape(tile, [tile.shape[0], tile.shape[1] * 2])
    elif N == 4:
        tile = side_by_side((side_by_side((parts[0], parts[2]), 2), side_by_side((parts[1], parts[3]), 2)), 2)
    else:
        even = side_by_side((parts[0], parts[2], parts[4], parts[6]), 4)
        tile = side_by_side((even, side_by_side((parts[1], parts[3], parts[5], parts[7]), 4)), 2)
    return tile
