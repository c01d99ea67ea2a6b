# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Triton kernels of pick_or_mix: x is read once, and in backward written once, whatever the reduction.

A program holds a tile of one sample: BLOCK_S positions by BLOCK_G groups. Where positions lie side by side in memory
(NCHW) it walks the channels of its groups one after the other. Where channels do (channels_last), BLOCK_R channels of
each group lie side by side in the tile too, so that its loads stay whole cache lines, and are brought together last.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from .._layouts import Layout, blank, layout, remembered
from . import _common
from ._common import (
    LOAD_BYTES,
    THREADS,
    TRITON_DTYPES,
    Launch,
    aligned,
    alignment,
    divide,
    empty_output,
    larger,
    power_of_two,
)


@triton.jit
def _limits(channels, groups, space, CHANNELS_INNER: tl.constexpr, X_ALIGN: tl.constexpr, GROUPS_ALIGN: tl.constexpr):
    """The same numbers, of which the compiler knows what divides those of neighbours in memory."""
    if CHANNELS_INNER:
        channels, groups = aligned(channels, X_ALIGN), aligned(groups, GROUPS_ALIGN)
    else:
        space = aligned(space, X_ALIGN)
    return channels, groups, space


@triton.jit
def _probabilities(p_ptr, p_strides, b, g, groups, threshold, DTYPE: tl.constexpr):
    """p of a tile of groups, [1, g], and whether it picks."""
    p = tl.load(p_ptr + b * p_strides[0] + g * p_strides[1], g < groups, other=0).to(DTYPE)[None, :]
    return p, p < tl.full([1, 1], threshold, DTYPE)


@triton.jit
def _program(groups, s_tiles, BLOCK_G: tl.constexpr):
    """The sample, the tile of positions and the first group of this program."""
    program = tl.program_id(0).to(tl.int64)
    g_tiles = tl.cdiv(groups, BLOCK_G)
    return program // g_tiles // s_tiles, program // g_tiles % s_tiles, program % g_tiles * BLOCK_G


@triton.jit
def _channels(step, g_start, channels, REDUCTION: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr):
    """The channel of each lane of a tile, its number within its group, and whether there is such a channel."""
    lane = tl.arange(0, BLOCK_G * BLOCK_R)
    j = step * BLOCK_R + lane % BLOCK_R
    if REDUCTION == BLOCK_R:
        c = g_start * REDUCTION + lane  # as below, but the compiler sees that they are contiguous
        exists = c < channels
    else:
        c = (g_start + lane // BLOCK_R) * REDUCTION + j
        exists = (c < channels) & (j < REDUCTION)
    return c, j, exists


@triton.jit
def _offsets(strides, b, s, c, width, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Where the channels (or groups) c at the positions s lie, [s, c]; ALIGN divides every stride but the inner 1."""
    c_offset = c * strides[1]
    s_offset = s * strides[3] if FLAT else s // width * strides[2] + s % width * strides[3]
    if CHANNELS_INNER:
        s_offset = aligned(b * strides[0] + s_offset, ALIGN)
    else:
        c_offset = aligned(b * strides[0] + c_offset, ALIGN)
    return s_offset[:, None] + c_offset[None, :]


@triton.jit
def _by_group(lanes, BLOCK_R: tl.constexpr):
    return tl.reshape(lanes, [lanes.shape[0], lanes.shape[1] // BLOCK_R, BLOCK_R])


@triton.jit
def _by_lane(groups, BLOCK_R: tl.constexpr):
    """A value of each group for all of its lanes: [s, g] becomes [s, g · BLOCK_R]."""
    lanes = groups
    if BLOCK_R > 1:
        repeated = tl.broadcast_to(groups[:, :, None], [groups.shape[0], groups.shape[1], BLOCK_R])
        lanes = tl.reshape(repeated, [groups.shape[0], groups.shape[1] * BLOCK_R])
    return lanes


@triton.jit
def _share(values, size, REDUCTION: tl.constexpr, WHOLE: tl.constexpr):
    """values / size, but a product where that is exact: a rounded division branches for values near 0."""
    exact: tl.constexpr = WHOLE and REDUCTION & (REDUCTION - 1) == 0
    return values * (1 / REDUCTION) if exact else divide(values, size)


@triton.jit
def _reduce(
    x_ptr, x_strides, b, s, g_start, channels, space, width,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr, SHORT_TAIL: tl.constexpr,
    DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The reduction that p < t picks, the one it does not, the winner's number in its group, and the group's size."""
    best = tl.full([BLOCK_S, BLOCK_G * BLOCK_R], float("-inf"), DTYPE)
    first = tl.zeros([BLOCK_S, BLOCK_G * BLOCK_R], tl.int32) + (tl.arange(0, BLOCK_G * BLOCK_R) % BLOCK_R)[None, :]
    total = tl.zeros([BLOCK_S, BLOCK_G * BLOCK_R], DTYPE)
    # A short loop of unrolled steps, so that their loads are under way together but the code stays small.
    for start in range(0, tl.cdiv(REDUCTION, BLOCK_R), UNROLL):
        for k in tl.static_range(UNROLL):
            c, j, exists = _channels(start + k, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R)
            mask = (s < space)[:, None] & exists[None, :]
            offsets = _offsets(x_strides, b, s, c, width, FLAT, CHANNELS_INNER, ALIGN)
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
def _pick_or_mix_forward_kernel(
    x_ptr, p_ptr, y_ptr, x_strides, p_strides, y_strides,
    channels, groups, space, width, s_tiles, threshold: tl.float64,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr,
    SHORT_TAIL: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y = p · (max where p < t, else mean), or p · max + (1 − p) · mean where WEIGHTED."""
    channels, groups, space = _limits(channels, groups, space, CHANNELS_INNER, X_ALIGN, Y_ALIGN)
    b, s_tile, g_start = _program(groups, s_tiles, BLOCK_G)
    s, g = s_tile * BLOCK_S + tl.arange(0, BLOCK_S), g_start + tl.arange(0, BLOCK_G)
    upper, lower, _, _ = _reduce(
        x_ptr, x_strides, b, s, g_start, channels, space, width, REDUCTION, OPERATOR, LEGACY_TAIL, SHORT_TAIL,
        DTYPE, FLAT, CHANNELS_INNER, X_ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, UNROLL,
    )  # fmt: skip
    p, picks = _probabilities(p_ptr, p_strides, b, g, groups, threshold, DTYPE)
    y = p * upper + (1 - p) * lower if WEIGHTED else p * tl.where(picks, upper, lower)
    mask = (s < space)[:, None] & (g < groups)[None, :]
    offsets = _offsets(y_strides, b, s, g, width, FLAT, CHANNELS_INNER, Y_ALIGN)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _part_of_dp(grad, upper, lower, picks, WEIGHTED: tl.constexpr):
    """What each position adds to dp."""
    return grad * (upper - lower if WEIGHTED else tl.where(picks, upper, lower))


@triton.jit
def _spread(
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
def _of_channel(j, first, to_winner, to_each, OPERATOR: tl.constexpr):
    """What the channels of number j in their groups get of it."""
    won = tl.where(first == j[None, :], to_winner, 0.0)
    if OPERATOR == "avg":
        dx = to_each
    elif OPERATOR == "max+avg":
        dx = won + to_each
    else:
        dx = won
    return dx


@triton.jit
def _write(
    dx_ptr, dx_strides, b, s, g_start, channels, space, width, to_winner, to_each, first,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The gradients of the channels of a tile of groups."""
    for start in range(0, tl.cdiv(REDUCTION, BLOCK_R), UNROLL):
        for k in tl.static_range(UNROLL):
            c, j, exists = _channels(start + k, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R)
            dx = _of_channel(j, first, to_winner, to_each, OPERATOR)
            offsets = _offsets(dx_strides, b, s, c, width, FLAT, CHANNELS_INNER, ALIGN)
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), (s < space)[:, None] & exists[None, :])


@triton.jit
def _pick_or_mix_backward_kernel(
    grad_ptr, x_ptr, p_ptr, dx_ptr, dp_ptr, dp_strides, grad_strides, x_strides, p_strides, dx_strides,
    channels, groups, space, width, s_parts, threshold: tl.float64,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr,
    SHORT_TAIL: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    AT_ONCE: tl.constexpr, X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    r"""Both gradients from one reading of x.

    With g the incoming gradient, M the picked and A the other reduction of a group of n channels:

    - threshold: y = p v, v = M or A, so dp = Σ g v over the positions, and dv = g p goes to the one chosen;
    - weighted: y = p M + (1 − p) A, so dp = Σ g (M − A), dM = g p and dA = g (1 − p).

    dM goes to the first channel that attains it, dA / n to each channel. dp_ptr gets this program's part of the sum.
    """
    channels, groups, space = _limits(channels, groups, space, CHANNELS_INNER, X_ALIGN, GRAD_ALIGN)
    b, s_part, g_start = _program(groups, s_parts, BLOCK_G)
    s_start, g = s_part * AT_ONCE * BLOCK_S, g_start + tl.arange(0, BLOCK_G)
    p, picks = _probabilities(p_ptr, p_strides, b, g, groups, threshold, DTYPE)
    # The loads of all tiles first, as none moves up past a store.
    uppers, lowers, firsts, grads = (), (), (), ()
    for k in tl.static_range(AT_ONCE):
        s = s_start + k * BLOCK_S + tl.arange(0, BLOCK_S)
        upper, lower, first, size = _reduce(
            x_ptr, x_strides, b, s, g_start, channels, space, width, REDUCTION, OPERATOR, LEGACY_TAIL, SHORT_TAIL,
            DTYPE, FLAT, CHANNELS_INNER, X_ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, UNROLL,
        )  # fmt: skip
        offsets = _offsets(grad_strides, b, s, g, width, FLAT, CHANNELS_INNER, GRAD_ALIGN)
        grad = tl.load(grad_ptr + offsets, (s < space)[:, None] & (g < groups)[None, :], other=0).to(DTYPE)
        uppers, lowers, firsts, grads = uppers + (upper,), lowers + (lower,), firsts + (first,), grads + (grad,)

    dp = tl.zeros([BLOCK_S, BLOCK_G], DTYPE)
    for k in tl.static_range(AT_ONCE):
        s = s_start + k * BLOCK_S + tl.arange(0, BLOCK_S)
        upper, lower, grad = uppers[k], lowers[k], grads[k]
        part = _part_of_dp(grad, upper, lower, picks, WEIGHTED)
        dp += tl.where((s < space)[:, None] & (g < groups)[None, :], part, 0.0)  # beyond the mask −∞ · 0
        to_winner, to_each = _spread(grad, p, picks, size, REDUCTION, WEIGHTED, OPERATOR, LEGACY_TAIL or not SHORT_TAIL)
        _write(
            dx_ptr, dx_strides, b, s, g_start, channels, space, width,
            _by_lane(to_winner, BLOCK_R), _by_lane(to_each, BLOCK_R), _by_lane(firsts[k], BLOCK_R),
            REDUCTION, OPERATOR, FLAT, CHANNELS_INNER, DX_ALIGN, BLOCK_G, BLOCK_R, UNROLL,
        )  # fmt: skip
    dp_offsets = b * dp_strides[0] + g * dp_strides[1] + s_part * dp_strides[2]
    tl.store(dp_ptr + dp_offsets, tl.sum(dp, 0).to(dp_ptr.dtype.element_ty), g < groups)


def why_not(x: Tensor, p: Tensor, *constants: Any) -> str | None:
    return _common.why_not(x=x, p=p)


def forward(
    x: Tensor, p: Tensor, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> Tensor:
    y = empty_output(x, (x.shape[0], p.shape[1], *x.shape[2:]))
    if y.numel() > 0:
        _forward_launch((layout(x), layout(p)), reduction, threshold, fusion, operator, legacy_tail)(x, p, y)
    return y


@remembered
def _forward_launch(
    layouts: tuple[Layout, ...], reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> Launch:
    x, p = map(blank, layouts)
    y = empty_output(x, (x.shape[0], p.shape[1], *x.shape[2:]))
    programs, s_tiles, constants = _plan((x, y), p, reduction, fusion, operator, legacy_tail, loads=4)
    channels_inner, flat = constants["CHANNELS_INNER"], constants["FLAT"]
    arguments = (_strides(x, flat), p.stride(), _strides(y, flat), *_sizes(x, p), s_tiles, threshold)
    alignments = {"X_ALIGN": _alignment(x, channels_inner), "Y_ALIGN": _alignment(y, channels_inner)}
    return Launch(_pick_or_mix_forward_kernel, programs * s_tiles, arguments, constants | alignments)


def backward(
    grad: Tensor,
    x: Tensor,
    p: Tensor,
    reduction: int,
    threshold: float,
    fusion: str,
    operator: str,
    legacy_tail: bool,
) -> list[Tensor]:
    dx, dp = torch.empty_like(x), torch.empty_like(p)
    if x.numel() == 0:
        return [dx, dp.zero_()]
    layouts = layout(grad), layout(x), layout(p), layout(dx)
    s_parts, launch = _backward_launch(layouts, reduction, threshold, fusion, operator, legacy_tail)
    # Programs leave their sums side by side, and a second sum finishes: the same at every run, unlike atomic additions.
    dtype = compute_dtype(x, p)
    parts = dp.unsqueeze(-1) if s_parts == 1 else torch.empty((*p.shape, s_parts), dtype=dtype, device=p.device)
    launch(grad, x, p, dx, parts)
    return [dx, dp if s_parts == 1 else dp.copy_(parts.sum(-1))]


@remembered
def _backward_launch(
    layouts: tuple[Layout, ...], reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> tuple[int, Launch]:
    """The parts that the sums for dp are left in, and the launch."""
    grad, x, p, dx = map(blank, layouts)
    # Of neighbouring channels, larger tiles would make threads exchange what they have.
    loads = 4 if reduction == 1 else 1 if _channels_inner(x) else 2
    programs, s_tiles, constants = _plan((x, grad, dx), p, reduction, fusion, operator, legacy_tail, loads=loads)
    channels_inner, flat = constants["CHANNELS_INNER"], constants["FLAT"]
    # So some small ones at once.
    at_once = (2 if x.element_size() < 4 and reduction > 2 else 4) if channels_inner else 1
    constants["AT_ONCE"] = min(at_once, s_tiles)
    s_parts = triton.cdiv(s_tiles, constants["AT_ONCE"])
    parts = torch.empty_like(p).unsqueeze(-1) if s_parts == 1 else p.new_empty(*p.shape, s_parts)
    arguments = (
        *(parts.stride(), _strides(grad, flat), _strides(x, flat), p.stride(), _strides(dx, flat)),
        *(*_sizes(x, p), s_parts, threshold),
    )
    alignments = {
        "X_ALIGN": _alignment(x, channels_inner),
        "GRAD_ALIGN": _alignment(grad, channels_inner),
        "DX_ALIGN": _alignment(dx, channels_inner),
    }
    return s_parts, Launch(_pick_or_mix_backward_kernel, programs * s_parts, arguments, constants | alignments)


def _plan(
    tensors: tuple[Tensor, ...],
    p: Tensor,
    reduction: int,
    fusion: str,
    operator: str,
    legacy_tail: bool,
    *,
    loads: int,
) -> tuple[int, int, dict[str, Any]]:
    """The number of programs for each tile of positions, that of these tiles, and the kernels' constants.

    ``loads`` of 16 bytes are what a thread has under way.
    """
    x = tensors[0]
    batch, channels, space = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    groups = triton.cdiv(channels, reduction)
    channels_inner = _channels_inner(x)
    block_r = power_of_two(reduction, 64) if channels_inner else 1
    steps = triton.cdiv(reduction, block_r)
    elements = THREADS * LOAD_BYTES // x.element_size() * max(1, loads // steps)
    if channels_inner:
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
        "FLAT": all(_space_stride(t) is not None for t in tensors),
        "CHANNELS_INNER": channels_inner,
        "BLOCK_S": block_s,
        "BLOCK_G": block_g,
        "BLOCK_R": block_r,
        "UNROLL": min(steps, 16),
    }
    return batch * triton.cdiv(groups, block_g), s_tiles, constants


def _channels_inner(x: Tensor) -> bool:
    """Whether channels lie side by side, and not positions."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.shape[2] * x.shape[3] > 1 and x.stride(3) != 1


def _sizes(x: Tensor, p: Tensor) -> tuple[int, ...]:
    return x.shape[1], p.shape[1], x.shape[2] * x.shape[3], x.shape[3]


def _space_stride(x: Tensor) -> int | None:
    """The step between positions counted through rows, or None where rows do not follow each other so."""
    if x.shape[3] == 1:
        return x.stride(2)
    return x.stride(3) if x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3) else None


def _strides(x: Tensor, flat: bool) -> tuple[int, ...]:
    stride = _space_stride(x) if flat else None
    return x.stride() if stride is None else (x.stride(0), x.stride(1), 0, stride)


def _alignment(x: Tensor, channels_inner: bool) -> int:
    slow = (0, 2, 3) if channels_inner else (0, 1)
    inner = x.shape[1] if channels_inner else x.shape[2] * x.shape[3]
    return alignment(inner, *(x.stride(i) for i in slow if x.shape[i] > 1))
