# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Triton kernels of pick_or_mix: x is read once, and in backward written once, whatever the reduction."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from .._layouts import Layout, blank, layout, remembered
from . import _common
from ._common import Launch, empty_output
from ._pix_plan import has_channels_inner, plan, programs_of, sizes_of, strides_of
from ._pix_tiles import (
    by_lane,
    channels_of,
    gradient_of_step,
    groups_of,
    limits_of,
    offsets_of,
    part_of_dp,
    probabilities_of,
    program_of,
    reduce_groups,
    sample_of,
    spread,
)


@triton.jit
def _pick_or_mix_forward_kernel(
    x_ptr, p_ptr, y_ptr, x_strides, p_strides, y_strides,
    channels, groups, space, width, s_tiles, threshold: tl.float64,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr,
    SHORT_TAIL: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
    TOGETHER: tl.constexpr, UNROLL: tl.constexpr, INDEX: tl.constexpr, IN_SPACE: tl.constexpr,
):  # fmt: skip
    """y = p · (max where p < t, else mean), or p · max + (1 − p) · mean where WEIGHTED."""
    channels, groups, space = limits_of(channels, groups, space, CHANNELS_INNER, X_ALIGN, Y_ALIGN)
    b, s_tile, g_start = program_of(groups, s_tiles, IN_SPACE, INDEX, BLOCK_G)
    s, g = s_tile * BLOCK_S + tl.arange(0, BLOCK_S), groups_of(g_start, BLOCK_G, TOGETHER)
    x_ptr, y_ptr = sample_of(x_ptr, x_strides, b, X_ALIGN), sample_of(y_ptr, y_strides, b, Y_ALIGN)
    upper, lower, _, _ = reduce_groups(
        x_ptr, x_strides, s, g_start, channels, space, width, REDUCTION, OPERATOR, LEGACY_TAIL, SHORT_TAIL,
        DTYPE, FLAT, CHANNELS_INNER, X_ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, PACK, UNROLL,
    )  # fmt: skip
    p, picks = probabilities_of(p_ptr, p_strides, b, g, groups, threshold, DTYPE)
    y = p * upper + (1 - p) * lower if WEIGHTED else p * tl.where(picks, upper, lower)
    mask = (s < space)[:, None] & (g < groups)[None, :]
    offsets = offsets_of(y_strides, s, g, width, FLAT, CHANNELS_INNER, Y_ALIGN)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _write(
    dx_ptr, dx_strides, s, g_start, channels, space, width, to_winner, to_each, first,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """The gradients of the channels of a tile of groups."""
    for start in range(0, tl.cdiv(REDUCTION, BLOCK_R), UNROLL):
        for k in tl.static_range(UNROLL):
            c, j, exists = channels_of(start + k, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R, PACK)
            dx = gradient_of_step(k, j, first, to_winner, to_each, OPERATOR, REDUCTION, BLOCK_R, PACK)
            offsets = offsets_of(dx_strides, s, c, width, FLAT, CHANNELS_INNER, ALIGN)
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), (s < space)[:, None] & exists[None, :])


@triton.jit
def _pick_or_mix_backward_kernel(
    grad_ptr, x_ptr, p_ptr, dx_ptr, dp_ptr, dp_strides, grad_strides, x_strides, p_strides, dx_strides,
    channels, groups, space, width, s_parts, threshold: tl.float64,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr,
    SHORT_TAIL: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    AT_ONCE: tl.constexpr, X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
    TOGETHER: tl.constexpr, UNROLL: tl.constexpr, INDEX: tl.constexpr, IN_SPACE: tl.constexpr,
):  # fmt: skip
    r"""Both gradients from one reading of x.

    With g the incoming gradient, M the picked and A the other reduction of a group of n channels:

    - threshold: y = p v, v = M or A, so dp = Σ g v over the positions, and dv = g p goes to the one chosen;
    - weighted: y = p M + (1 − p) A, so dp = Σ g (M − A), dM = g p and dA = g (1 − p).

    dM goes to the first channel that attains it, dA / n to each channel. dp_ptr gets this program's part of the sum.
    """
    channels, groups, space = limits_of(channels, groups, space, CHANNELS_INNER, X_ALIGN, GRAD_ALIGN)
    b, s_part, g_start = program_of(groups, s_parts, IN_SPACE, INDEX, BLOCK_G)
    s_start, g = s_part * AT_ONCE * BLOCK_S, groups_of(g_start, BLOCK_G, TOGETHER)
    p, picks = probabilities_of(p_ptr, p_strides, b, g, groups, threshold, DTYPE)
    x_ptr, grad_ptr = sample_of(x_ptr, x_strides, b, X_ALIGN), sample_of(grad_ptr, grad_strides, b, GRAD_ALIGN)
    dx_ptr = sample_of(dx_ptr, dx_strides, b, DX_ALIGN)
    # The loads of all tiles first, as none moves up past a store.
    uppers, lowers, firsts, grads = (), (), (), ()
    for k in tl.static_range(AT_ONCE):
        s = s_start + k * BLOCK_S + tl.arange(0, BLOCK_S)
        upper, lower, first, size = reduce_groups(
            x_ptr, x_strides, s, g_start, channels, space, width, REDUCTION, OPERATOR, LEGACY_TAIL, SHORT_TAIL,
            DTYPE, FLAT, CHANNELS_INNER, X_ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, PACK, UNROLL,
        )  # fmt: skip
        offsets = offsets_of(grad_strides, s, g, width, FLAT, CHANNELS_INNER, GRAD_ALIGN)
        grad = tl.load(grad_ptr + offsets, (s < space)[:, None] & (g < groups)[None, :], other=0).to(DTYPE)
        uppers, lowers, firsts, grads = uppers + (upper,), lowers + (lower,), firsts + (first,), grads + (grad,)

    dp = tl.zeros([BLOCK_S, BLOCK_G], DTYPE)
    for k in tl.static_range(AT_ONCE):
        s = s_start + k * BLOCK_S + tl.arange(0, BLOCK_S)
        upper, lower, grad = uppers[k], lowers[k], grads[k]
        part = part_of_dp(grad, upper, lower, picks, WEIGHTED)
        dp += tl.where((s < space)[:, None] & (g < groups)[None, :], part, 0.0)  # beyond the mask −∞ · 0
        to_winner, to_each = spread(grad, p, picks, size, REDUCTION, WEIGHTED, OPERATOR, LEGACY_TAIL or not SHORT_TAIL)
        _write(
            dx_ptr, dx_strides, s, g_start, channels, space, width,
            by_lane(to_winner, BLOCK_R, PACK), by_lane(to_each, BLOCK_R, PACK), by_lane(firsts[k], BLOCK_R, PACK),
            REDUCTION, OPERATOR, FLAT, CHANNELS_INNER, DX_ALIGN, BLOCK_G, BLOCK_R, PACK, UNROLL,
        )  # fmt: skip
    dp_offsets = b * dp_strides[0] + g * dp_strides[1] + s_part * dp_strides[2]
    tl.store(dp_ptr + dp_offsets, tl.sum(dp, 0).to(dp_ptr.dtype.element_ty), g < groups)


def why_not(x: Tensor, p: Tensor, *constants: Any) -> str | None:
    return _common.why_not(x=x, p=p)


def forward(
    x: Tensor, p: Tensor, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> Tensor:
    if x.numel() == 0:
        return empty_output(x, (x.shape[0], p.shape[1], *x.shape[2:]))
    y_layout, launch = forward_launch((layout(x), layout(p)), reduction, threshold, fusion, operator, legacy_tail)
    y = blank(y_layout, x.device)
    launch(x, p, y)
    return y


@remembered
def forward_launch(
    layouts: tuple[Layout, ...], reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> tuple[Layout, Launch]:
    """The output's layout, and the launch."""
    x, p = map(blank, layouts)
    y = empty_output(x, (x.shape[0], p.shape[1], *x.shape[2:]))
    loads = 2 if has_channels_inner(x) and x.dtype == torch.float32 else 4  # the fastest on an H200
    g_tiles, s_tiles, constants = plan({"X": x, "Y": y}, p, reduction, fusion, operator, legacy_tail, loads=loads)
    programs, order = programs_of(g_tiles, s_tiles, len(x))
    flat = constants["FLAT"]
    arguments = (strides_of(x, flat), p.stride(), strides_of(y, flat), *sizes_of(x, p), s_tiles, threshold)
    return layout(y), Launch(_pick_or_mix_forward_kernel, programs, arguments, constants | order)


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
    channels_inner, narrow = has_channels_inner(x), x.element_size() < 4 and reduction > 2
    # Of neighbouring channels, larger tiles would make threads exchange what they have.
    loads = 4 if reduction == 1 else 1 if channels_inner and not narrow else 2
    maps = {"X": x, "GRAD": grad, "DX": dx}
    g_tiles, s_tiles, constants = plan(maps, p, reduction, fusion, operator, legacy_tail, loads=loads)
    # So some small ones at once.
    few = narrow or constants["PACK"] or 1 < constants["BLOCK_R"] < reduction
    constants["AT_ONCE"] = min((2 if few else 4) if channels_inner else 1, s_tiles)
    s_parts = triton.cdiv(s_tiles, constants["AT_ONCE"])
    programs, order = programs_of(g_tiles, s_parts, len(x))
    parts = torch.empty_like(p).unsqueeze(-1) if s_parts == 1 else p.new_empty(*p.shape, s_parts)
    flat = constants["FLAT"]
    arguments = (
        *(parts.stride(), strides_of(grad, flat), strides_of(x, flat), p.stride(), strides_of(dx, flat)),
        *(*sizes_of(x, p), s_parts, threshold),
    )
    return s_parts, Launch(_pick_or_mix_backward_kernel, programs, arguments, constants | order)
