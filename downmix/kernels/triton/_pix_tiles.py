# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Tiles of pick_or_mix, for its kernels and those of a whole PiX layer.

A program holds a tile of one sample: BLOCK_S positions by BLOCK_G groups. Where positions lie side by side in memory
(NCHW) it walks the channels of its groups one after the other. Where channels do (channels_last), BLOCK_R channels of
each group lie side by side in the tile too, so that its loads stay whole cache lines, and are brought together last.
Or each thread takes PACK whole groups, PACK · BLOCK_R channels at a time, and has nothing to exchange with others.
"""

import triton
import triton.language as tl

from ._common import aligned, divide, larger
from ._vectors import apart, side_by_side


@triton.jit
def limits_of(channels, groups, space, CHANNELS_INNER: tl.constexpr, X_ALIGN: tl.constexpr, GROUPS_ALIGN: tl.constexpr):
    """The same numbers, of which the compiler knows what divides those of neighbours in memory."""
    if CHANNELS_INNER:
        channels, groups = aligned(channels, X_ALIGN), aligned(groups, GROUPS_ALIGN)
    else:
        space = aligned(space, X_ALIGN)
    return channels, groups, space


@triton.jit
def program_of(groups, s_parts, IN_SPACE: tl.constexpr, INDEX: tl.constexpr, BLOCK_G: tl.constexpr):
    """The sample, the part of positions and the first group of this program."""
    if IN_SPACE:
        b, s_part, g_tile = tl.program_id(2), tl.program_id(1), tl.program_id(0)
    else:
        g_tiles = tl.cdiv(groups, BLOCK_G)
        row, g_tile = tl.program_id(0) // g_tiles, tl.program_id(0) % g_tiles
        b, s_part = row // s_parts, row % s_parts
    return b.to(tl.int64), s_part.to(INDEX), g_tile.to(INDEX) * BLOCK_G


@triton.jit
def sample_of(ptr, strides, b, ALIGN: tl.constexpr):
    """Where sample b of a map begins; ALIGN divides every stride but the inner 1."""
    return ptr + aligned(b * strides[0], ALIGN)


@triton.jit
def probabilities_of(p_ptr, p_strides, b, g, groups, threshold, DTYPE: tl.constexpr):
    """p of a tile of groups, [1, g], and whether it picks."""
    p = tl.load(p_ptr + b * p_strides[0] + g * p_strides[1], g < groups, other=0).to(DTYPE)[None, :]
    return p, p < tl.full([1, 1], threshold, DTYPE)


@triton.jit
def groups_of(g_start, BLOCK_G: tl.constexpr, TOGETHER: tl.constexpr):
    """The groups of a tile.

    The compiler is to see no more neighbours than a thread has the channels of, or it would load and store more of
    them at once, and have threads exchange them.
    """
    g = g_start + tl.arange(0, BLOCK_G)
    if TOGETHER > 0:
        g = tl.multiple_of(g, TOGETHER)
    return g


@triton.jit
def channels_of(
    step, g_start, channels,
    REDUCTION: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """The channel of each lane of a tile, its number within its group, and whether there is such a channel.

    With PACK, the number is that within the first group of a thread.
    """
    lane = tl.arange(0, BLOCK_G * BLOCK_R)
    j = step * BLOCK_R + lane % BLOCK_R
    if PACK > 0:
        j = step * (PACK * BLOCK_R) + lane % (PACK * BLOCK_R)
        c = g_start * REDUCTION + lane // (PACK * BLOCK_R) * (REDUCTION * PACK) + j
        exists = c < channels
    elif REDUCTION == BLOCK_R:
        c = g_start * REDUCTION + lane  # as below, but the compiler sees that they are contiguous
        exists = c < channels
    else:
        c = (g_start + lane // BLOCK_R) * REDUCTION + j
        exists = (c < channels) & (j < REDUCTION)
    return c, j, exists


@triton.jit
def offsets_of(strides, s, c, width, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Where the channels (or groups) c at the positions s of a sample lie, [s, c]; ALIGN as in ``sample_of``."""
    c_offset = c * strides[1]
    s_offset = s * strides[3] if FLAT else s // width * strides[2] + s % width * strides[3]
    if CHANNELS_INNER:
        s_offset = aligned(s_offset, ALIGN)
    else:
        c_offset = aligned(c_offset, ALIGN)
    return s_offset[:, None] + c_offset[None, :]


@triton.jit
def _by_group(lanes, BLOCK_R: tl.constexpr):
    return tl.reshape(lanes, [lanes.shape[0], lanes.shape[1] // BLOCK_R, BLOCK_R])


@triton.jit
def by_lane(groups, BLOCK_R: tl.constexpr, PACK: tl.constexpr):
    """A value of each group for all of its lanes: [s, g] becomes [s, g · BLOCK_R], or PACK tensors."""
    lanes = groups
    if PACK > 0:
        lanes = apart(groups, PACK)
    elif BLOCK_R > 1:
        repeated = tl.broadcast_to(groups[:, :, None], [groups.shape[0], groups.shape[1], BLOCK_R])
        lanes = tl.reshape(repeated, [groups.shape[0], groups.shape[1] * BLOCK_R])
    return lanes


@triton.jit
def _share(values, size, REDUCTION: tl.constexpr, WHOLE: tl.constexpr):
    """values / size, but a product where that is exact: a rounded division branches for values near 0."""
    exact: tl.constexpr = WHOLE and REDUCTION & (REDUCTION - 1) == 0
    return values * (1 / REDUCTION) if exact else divide(values, size)


@triton.jit
def _best_and_total(
    x_ptr, x_strides, s, g_start, channels, space, width,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, SHORT_TAIL: tl.constexpr,
    DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Of each group the largest value (of −x for a minimum), its number, and the sum."""
    best = tl.full([BLOCK_S, BLOCK_G * BLOCK_R], float("-inf"), DTYPE)
    first = tl.zeros([BLOCK_S, BLOCK_G * BLOCK_R], tl.int32) + (tl.arange(0, BLOCK_G * BLOCK_R) % BLOCK_R)[None, :]
    total = tl.zeros([BLOCK_S, BLOCK_G * BLOCK_R], DTYPE)
    # A short loop of unrolled steps, so that their loads are under way together but the code stays small.
    for start in range(0, tl.cdiv(REDUCTION, BLOCK_R), UNROLL):
        for k in tl.static_range(UNROLL):
            c, j, exists = channels_of(start + k, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R, 0)
            mask = (s < space)[:, None] & exists[None, :]
            offsets = offsets_of(x_strides, s, c, width, FLAT, CHANNELS_INNER, ALIGN)
            value = tl.load(x_ptr + offsets, mask, other=0).to(DTYPE)
            total += value
            value = -value if OPERATOR == "min" else value
            if SHORT_TAIL or REDUCTION % (BLOCK_R * UNROLL):
                value = tl.where(exists[None, :], value, float("-inf"))
            # The first of equal values wins, but NaN over any number: as torch.max has it.
            first = tl.where((value <= best) | (best != best), first, j[None, :])
            best = larger(best, value)
    if BLOCK_R > 1:
        lanes, first = _by_group(best, BLOCK_R), _by_group(first, BLOCK_R)
        total = tl.sum(_by_group(total, BLOCK_R), 2)
        best = tl.reduce(lanes, 2, larger)
        wins = (lanes == best[:, :, None]) | (lanes != lanes)
        first = tl.min(tl.where(wins, first, REDUCTION), 2)
    return best, first, total


@triton.jit
def _best_and_total_of_packs(
    x_ptr, x_strides, s, g_start, channels, space, width,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, SHORT_TAIL: tl.constexpr,
    DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """The same where each thread has PACK whole groups."""
    values = ()
    for step in tl.static_range(REDUCTION // BLOCK_R):
        c, _j, exists = channels_of(step, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R, PACK)
        offsets = offsets_of(x_strides, s, c, width, FLAT, CHANNELS_INNER, ALIGN)
        tile = tl.load(x_ptr + offsets, (s < space)[:, None] & exists[None, :], other=0).to(DTYPE)
        values = values + apart(tile, PACK * BLOCK_R)
    start = (g_start + tl.arange(0, BLOCK_G // PACK) * PACK) * REDUCTION
    bests, firsts, totals = (), (), ()
    for n in tl.static_range(PACK):
        total = values[n * REDUCTION]
        best = -total if OPERATOR == "min" else total
        first = tl.zeros_like(total).to(tl.int32)
        for j in tl.static_range(1, REDUCTION):
            value = values[n * REDUCTION + j]
            total += value
            value = -value if OPERATOR == "min" else value
            if SHORT_TAIL:
                value = tl.where((start + (n * REDUCTION + j) < channels)[None, :], value, float("-inf"))
            first = tl.where((value <= best) | (best != best), first, j)
            best = larger(best, value)
        bests, firsts, totals = bests + (best,), firsts + (first,), totals + (total,)
    return side_by_side(bests, PACK), side_by_side(firsts, PACK), side_by_side(totals, PACK)


@triton.jit
def reduce_groups(
    x_ptr, x_strides, s, g_start, channels, space, width,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr, SHORT_TAIL: tl.constexpr,
    DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The reduction that p < t picks, the one it does not, the winner's number in its group, and the group's size."""
    if PACK > 0:
        best, first, total = _best_and_total_of_packs(
            x_ptr, x_strides, s, g_start, channels, space, width, REDUCTION, OPERATOR, SHORT_TAIL,
            DTYPE, FLAT, CHANNELS_INNER, ALIGN, BLOCK_G, BLOCK_R, PACK,
        )  # fmt: skip
    else:
        best, first, total = _best_and_total(
            x_ptr, x_strides, s, g_start, channels, space, width, REDUCTION, OPERATOR, SHORT_TAIL,
            DTYPE, FLAT, CHANNELS_INNER, ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, UNROLL,
        )  # fmt: skip
    size = tl.full([BLOCK_G], REDUCTION, tl.int64)
    if SHORT_TAIL and not LEGACY_TAIL:
        size = tl.minimum(size, channels - (g_start + tl.arange(0, BLOCK_G)) * REDUCTION)
    size = size.to(DTYPE)[None, :]
    mean = _share(total, size, REDUCTION, LEGACY_TAIL or not SHORT_TAIL)
    best = -best if OPERATOR == "min" else best
    upper = mean if OPERATOR == "avg" else best
    lower = mean if OPERATOR == "avg" or OPERATOR == "max+avg" else best
    return upper, lower, first, size


@triton.jit
def part_of_dp(grad, upper, lower, picks, WEIGHTED: tl.constexpr):
    """What each position adds to dp."""
    return grad * (upper - lower if WEIGHTED else tl.where(picks, upper, lower))


@triton.jit
def spread(
    grad, p, picks, size,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The gradients that the winner of each group and each of its channels get."""
    if WEIGHTED:
        d_upper, d_lower = grad * p, grad * (1 - p)
    else:
        d_upper, d_lower = tl.where(picks, grad * p, 0.0), tl.where(picks, 0.0, grad * p)
    to_winner = d_upper if OPERATOR == "max+avg" else d_upper + d_lower
    to_each = d_lower if OPERATOR == "max+avg" else d_upper + d_lower
    return to_winner, _share(to_each, size, REDUCTION, WHOLE)


@triton.jit
def gradient_of_step(
    step, j, first, to_winner, to_each,
    OPERATOR: tl.constexpr, REDUCTION: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """What the channels of a step get of it, [s, lane], from `by_lane`."""
    if PACK > 0:
        VECTOR: tl.constexpr = PACK * BLOCK_R
        parts = ()
        for i in tl.static_range(VECTOR):
            parts = parts + (
                _gradient_of_channel(
                    (step * VECTOR + i) % REDUCTION,
                    first[(step * VECTOR + i) // REDUCTION],
                    to_winner[(step * VECTOR + i) // REDUCTION],
                    to_each[(step * VECTOR + i) // REDUCTION],
                    OPERATOR,
                ),
            )
        dx = side_by_side(parts, VECTOR)
    else:
        dx = _gradient_of_channel(j[None, :], first, to_winner, to_each, OPERATOR)
    return dx


@triton.jit
def _gradient_of_channel(j, first, to_winner, to_each, OPERATOR: tl.constexpr):
    """What the channels of number j in their groups get of it."""
    won = tl.where(first == j, to_winner, 0.0)
    if OPERATOR == "avg":
        dx = to_each
    elif OPERATOR == "max+avg":
        dx = won + to_each
    else:
        dx = won
    return dx
