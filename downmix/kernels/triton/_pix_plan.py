"""The shape of pick_or_mix's tiles and the order of its programs, which follow from layouts and sizes alone."""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from ._common import LOAD_BYTES, THREADS, TRITON_DTYPES, alignment, power_of_two

# Channels that a thread holds, with the gradients of as many.
_OF_A_THREAD = 32
# Programs that a GPU takes in the second and third dimension.
_MOST_ROWS = 65535
# Offsets within a sample that 32 bits hold, with what lies beyond the last tile's end and is masked.
_FARTHEST = 2**30


def plan(
    maps: dict[str, Tensor],
    p: Tensor,
    reduction: int,
    fusion: str,
    operator: str,
    legacy_tail: bool,
    *,
    loads: int,
) -> tuple[int, int, dict[str, Any]]:
    """The number of tiles of groups, that of positions, and the kernels' constants.

    ``maps`` are x, as "X", and others, by the names of their alignments. ``loads`` of 16 bytes are what a thread has
    under way.
    """
    x = maps["X"]
    channels, space = x.shape[1], x.shape[2] * x.shape[3]
    groups = triton.cdiv(channels, reduction)
    channels_inner = has_channels_inner(x)
    block_r, pack = _side_by_side(reduction, groups, x.element_size()) if channels_inner else (1, 0)
    steps = triton.cdiv(reduction, block_r)
    elements = THREADS * LOAD_BYTES // x.element_size() * max(1, loads // steps)
    if pack:
        fitting = max(1, 512 // x.element_size() // reduction)  # as below, or a little less
        block_g = max(pack, power_of_two(groups, triton.next_power_of_2(fitting + 1) // 2))
        block_s = power_of_two(space, max(1, THREADS * max(1, loads // steps) * pack // block_g))
    elif channels_inner:
        # 512 bytes of neighbouring channels: whole cache lines, while many positions share the sum for dp.
        block_g = power_of_two(groups, max(1, 512 // x.element_size() // block_r))
        block_s = power_of_two(space, elements // (block_g * block_r))
    else:
        block_s = power_of_two(space, elements)
        block_g = power_of_two(groups, elements // block_s)
    s_tiles = triton.cdiv(space, block_s)
    constants = {
        "REDUCTION": reduction,
        "WEIGHTED": fusion == "weighted",
        "OPERATOR": operator,
        "LEGACY_TAIL": legacy_tail,
        "SHORT_TAIL": channels % reduction != 0,
        "DTYPE": TRITON_DTYPES[compute_dtype(x, p)],
        "FLAT": all(_space_stride(t) is not None for t in maps.values()),
        "CHANNELS_INNER": channels_inner,
        "BLOCK_S": block_s,
        "BLOCK_G": block_g,
        "BLOCK_R": block_r,
        "PACK": pack,
        "TOGETHER": (pack or max(1, LOAD_BYTES // x.element_size() // block_r)) if channels_inner else 0,
        "INDEX": tl.int32 if max(map(_extent, (*maps.values(), p))) < _FARTHEST else tl.int64,
        "UNROLL": steps if pack else triton.cdiv(steps, triton.cdiv(steps, 8)),  # at most 8, as even as can be
        **{f"{name}_ALIGN": _alignment(t, channels_inner) for name, t in maps.items()},
    }
    return triton.cdiv(groups, block_g), s_tiles, constants


def programs_of(g_tiles: int, s_parts: int, batch: int) -> tuple[tuple[int, int, int], dict[str, bool]]:
    """The programs, and whether they stand in three dimensions, which saves each of them two divisions."""
    if max(s_parts, batch) <= _MOST_ROWS:
        return (g_tiles, s_parts, batch), {"IN_SPACE": True}
    return (g_tiles * s_parts * batch, 1, 1), {"IN_SPACE": False}


def _extent(x: Tensor) -> int:
    """How far the last element of a sample lies from its first."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))


def _side_by_side(reduction: int, groups: int, size: int) -> tuple[int, int]:
    """The channels of a group that lie side by side in a tile of channels_last, and how many groups a thread has whole.

    The latter is 0 where threads share groups: where registers hold none, or the compiled code has fewer barriers so.
    """
    if reduction > 1 and (size != 4 or reduction & (reduction - 1)):
        for vector in (8, 4, 2):  # channels that a thread loads at once
            together = math.gcd(reduction, vector)
            pack = vector // together
            if vector * size > LOAD_BYTES or reduction * pack > _OF_A_THREAD:
                continue
            if reduction == vector or (pack == 2 and groups % 2):
                break
            return together, pack
    most = power_of_two(reduction, 64)
    divisor = min(reduction & -reduction, 64)
    # A few steps over a group leave no lane idle; many would read the same cache lines too often.
    return (divisor if reduction <= 7 * divisor else most), 0


def has_channels_inner(x: Tensor) -> bool:
    """Whether channels lie side by side, and not positions."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.shape[2] * x.shape[3] > 1 and x.stride(3) != 1


def sizes_of(x: Tensor, p: Tensor) -> tuple[int, ...]:
    return x.shape[1], p.shape[1], x.shape[2] * x.shape[3], x.shape[3]


def _space_stride(x: Tensor) -> int | None:
    """The step between positions counted through rows, or None where rows do not follow each other so."""
    if x.shape[3] == 1:
        return x.stride(2)
    return x.stride(3) if x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3) else None


def strides_of(x: Tensor, flat: bool) -> tuple[int, ...]:
    stride = _space_stride(x) if flat else None
    return x.stride() if stride is None else (x.stride(0), x.stride(1), 0, stride)


def _alignment(x: Tensor, channels_inner: bool) -> int:
    """What divides all steps of ``x`` but that between neighbours in memory, and their number."""
    slow = (0, 2, 3) if channels_inner else (0, 1)
    inner = x.shape[1] if channels_inner else x.shape[2] * x.shape[3]
    return alignment(inner, *(x.stride(i) for i in slow if x.shape[i] > 1))
