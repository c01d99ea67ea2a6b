# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""The gradient of a whole PiX layer: p follows from the mean of x, so x gets a gradient through its mean as well.

That one is known once that of the logits is, so x is read twice: for it first, then to write all that x gets at once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from .._layouts import Layout, blank, layout, remembered
from .._linear import gradients
from . import _pix_linear
from ._common import Launch, on_device_of, shared_out
from ._pix_plan import plan, programs_of, sizes_of, strides_of
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
from .pix import why_not

__all__ = ["backward", "why_not"]


@triton.jit
def _gradient_of_logits_kernel(
    grad_ptr, x_ptr, p_ptr, sum_ptr, grad_strides, x_strides, p_strides,
    channels, groups, space, width, s_parts, tiles, threshold: tl.float64, slope: tl.float64,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr,
    SHORT_TAIL: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
    TOGETHER: tl.constexpr, UNROLL: tl.constexpr, INDEX: tl.constexpr, IN_SPACE: tl.constexpr,
):  # fmt: skip
    """dp, as the kernel of both gradients has it, times slope · p (1 − p): [B, s_parts, G], each of ``tiles`` tiles."""
    channels, groups, space = limits_of(channels, groups, space, CHANNELS_INNER, X_ALIGN, GRAD_ALIGN)
    b, s_part, g_start = program_of(groups, s_parts, IN_SPACE, INDEX, BLOCK_G)
    g = groups_of(g_start, BLOCK_G, TOGETHER)
    p, picks = probabilities_of(p_ptr, p_strides, b, g, groups, threshold, DTYPE)
    x_ptr, grad_ptr = sample_of(x_ptr, x_strides, b, X_ALIGN), sample_of(grad_ptr, grad_strides, b, GRAD_ALIGN)
    dp = tl.zeros([BLOCK_S, BLOCK_G], DTYPE)
    for tile in range(tiles):
        s = (s_part * tiles + tile) * BLOCK_S + tl.arange(0, BLOCK_S)
        upper, lower, _first, _size = reduce_groups(
            x_ptr, x_strides, s, g_start, channels, space, width, REDUCTION, OPERATOR, LEGACY_TAIL, SHORT_TAIL,
            DTYPE, FLAT, CHANNELS_INNER, X_ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, PACK, UNROLL,
        )  # fmt: skip
        mask = (s < space)[:, None] & (g < groups)[None, :]
        offsets = offsets_of(grad_strides, s, g, width, FLAT, CHANNELS_INNER, GRAD_ALIGN)
        grad = tl.load(grad_ptr + offsets, mask, other=0).to(DTYPE)
        dp += tl.where(mask, part_of_dp(grad, upper, lower, picks, WEIGHTED), 0.0)
    logits = tl.sum(dp, 0)[None, :] * (p * (1 - p)) * tl.full([1, 1], slope, DTYPE)
    tl.store(sum_ptr + ((b * s_parts + s_part) * groups + g)[None, :], logits, (g < groups)[None, :])


@triton.jit
def _write(
    dx_ptr, dx_strides, mean_ptr, other_ptr, other_strides, x_ptr, x_strides,
    s, g_start, channels, space, width, to_winner, to_each, first,
    REDUCTION: tl.constexpr, OPERATOR: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr,
    CHANNELS_INNER: tl.constexpr, OTHER: tl.constexpr, RECTIFIED: tl.constexpr, OTHER_ALIGN: tl.constexpr,
    X_ALIGN: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """All gradients of the channels of a tile of groups."""
    for start in range(0, tl.cdiv(REDUCTION, BLOCK_R), UNROLL):
        others, shut = (), ()  # before the first is written, as no load moves up past a store
        for k in tl.static_range(UNROLL):
            c, _j, exists = channels_of(start + k, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R, PACK)
            mask = (s < space)[:, None] & exists[None, :]
            other = tl.load(mean_ptr + c, exists, other=0).to(DTYPE)[None, :] / space
            if OTHER:
                offsets = offsets_of(other_strides, s, c, width, FLAT, CHANNELS_INNER, OTHER_ALIGN)
                other += tl.load(other_ptr + offsets, mask, other=0).to(DTYPE)
            if RECTIFIED:
                offsets = offsets_of(x_strides, s, c, width, FLAT, CHANNELS_INNER, X_ALIGN)
                value = tl.load(x_ptr + offsets, mask, other=0).to(DTYPE)
                shut += (value == 0,)  # a NaN lets through, as torch's ReLU does
            others += (other,)
        for k in tl.static_range(UNROLL):
            c, j, exists = channels_of(start + k, g_start, channels, REDUCTION, BLOCK_G, BLOCK_R, PACK)
            dx = others[k] + gradient_of_step(k, j, first, to_winner, to_each, OPERATOR, REDUCTION, BLOCK_R, PACK)
            if RECTIFIED:
                dx = tl.where(shut[k], 0.0, dx)
            offsets = offsets_of(dx_strides, s, c, width, FLAT, CHANNELS_INNER, ALIGN)
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), (s < space)[:, None] & exists[None, :])


@triton.jit
def _gradient_of_x_kernel(
    grad_ptr, x_ptr, p_ptr, mean_ptr, other_ptr, dx_ptr, grad_strides, x_strides, p_strides, other_strides, dx_strides,
    channels, groups, space, width, s_tiles, threshold: tl.float64,
    REDUCTION: tl.constexpr, WEIGHTED: tl.constexpr, OPERATOR: tl.constexpr, LEGACY_TAIL: tl.constexpr,
    SHORT_TAIL: tl.constexpr, DTYPE: tl.constexpr, FLAT: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    OTHER: tl.constexpr, RECTIFIED: tl.constexpr, X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr,
    OTHER_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, PACK: tl.constexpr,
    TOGETHER: tl.constexpr, UNROLL: tl.constexpr, INDEX: tl.constexpr, IN_SPACE: tl.constexpr,
):  # fmt: skip
    """The gradient of x through the fusion, its mean and, with OTHER, other readers; RECTIFIED, in front of a ReLU."""
    channels, groups, space = limits_of(channels, groups, space, CHANNELS_INNER, X_ALIGN, GRAD_ALIGN)
    b, s_tile, g_start = program_of(groups, s_tiles, IN_SPACE, INDEX, BLOCK_G)
    s, g = s_tile * BLOCK_S + tl.arange(0, BLOCK_S), groups_of(g_start, BLOCK_G, TOGETHER)
    p, picks = probabilities_of(p_ptr, p_strides, b, g, groups, threshold, DTYPE)
    x_ptr, grad_ptr = sample_of(x_ptr, x_strides, b, X_ALIGN), sample_of(grad_ptr, grad_strides, b, GRAD_ALIGN)
    other_ptr, dx_ptr = sample_of(other_ptr, other_strides, b, OTHER_ALIGN), sample_of(dx_ptr, dx_strides, b, DX_ALIGN)
    mean_ptr += b * channels
    _upper, _lower, first, size = reduce_groups(
        x_ptr, x_strides, s, g_start, channels, space, width, REDUCTION, OPERATOR, LEGACY_TAIL, SHORT_TAIL,
        DTYPE, FLAT, CHANNELS_INNER, X_ALIGN, BLOCK_S, BLOCK_G, BLOCK_R, PACK, UNROLL,
    )  # fmt: skip
    offsets = offsets_of(grad_strides, s, g, width, FLAT, CHANNELS_INNER, GRAD_ALIGN)
    grad = tl.load(grad_ptr + offsets, (s < space)[:, None] & (g < groups)[None, :], other=0).to(DTYPE)
    to_winner, to_each = spread(grad, p, picks, size, REDUCTION, WEIGHTED, OPERATOR, LEGACY_TAIL or not SHORT_TAIL)
    _write(
        dx_ptr, dx_strides, mean_ptr, other_ptr, other_strides, x_ptr, x_strides,
        s, g_start, channels, space, width,
        by_lane(to_winner, BLOCK_R, PACK), by_lane(to_each, BLOCK_R, PACK), by_lane(first, BLOCK_R, PACK),
        REDUCTION, OPERATOR, DTYPE, FLAT, CHANNELS_INNER, OTHER, RECTIFIED, OTHER_ALIGN, X_ALIGN, DX_ALIGN,
        BLOCK_G, BLOCK_R, PACK, UNROLL,
    )  # fmt: skip


def backward(
    grad: Tensor,
    x: Tensor,
    p: Tensor,
    *constants: Any,
    slope: float,
    mean: Tensor,
    weight: Tensor,
    has_bias: bool,
    other: Tensor | None,
    rectified: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, or of what a ReLU made x of; of the linear map's weight; and of its bias, if it has one.

    Args:
        grad (Tensor[B, G, H, W]): of the fusion's result.
        x, p, constants: the fusion's arguments.
        slope: that of the gate is slope · p (1 − p).
        mean (Tensor[B, C]): of x, or [B, parts, C], which add up to it.
        weight (Tensor[G, C, 1, 1]): of the linear map, from the mean to the logits of p.
        other (Tensor[B, C, H, W]): the gradient of other readers of x, or None.
        rectified: whether x is the output of a ReLU, whose input's gradient is wanted.
    """
    (batch, channels), groups, dtype = x.shape[:2], p.shape[1], compute_dtype(x, p)
    if x.numel() == 0:
        _, dweight, dbias = gradients(p.new_zeros(batch, groups), mean, weight, has_bias)
        return torch.empty_like(x), dweight, dbias
    s_parts, launch = _launch_logits((layout(grad), layout(x), layout(p)), slope, *constants)
    logits = torch.empty((batch, s_parts, groups), dtype=dtype, device=p.device)
    with on_device_of(x):
        launch.here(grad, x, p, logits)
        launch = _pix_linear.backward_launch(layout(logits), layout(mean), layout(weight), has_bias)
        if isinstance(launch, str):
            of_mean, dweight, dbias = gradients(logits.sum(1), mean, weight, has_bias)
            of_mean = of_mean.contiguous()
        else:
            of_mean = torch.empty((batch, channels), dtype=dtype, device=x.device)
            dweight, dbias = torch.empty_like(weight), weight.new_empty(groups) if has_bias else None
            launch.here(logits, mean, weight, of_mean, dweight, dweight if dbias is None else dbias)
        dx = torch.empty_like(x)
        read = x if other is None else other
        layouts = tuple(map(layout, (grad, x, p, read, dx)))
        launch = _launch_x(layouts, of_mean.dtype, other is not None, rectified, *constants)
        launch.here(grad, x, p, of_mean, read, dx)
    return dx, dweight, dbias


@remembered
def _launch_logits(layouts: tuple[Layout, ...], slope: float, *constants: Any) -> tuple[int, Launch]:
    """The parts that the sums are left in, and the launch."""
    reduction, threshold, *rule = constants
    grad, x, p = map(blank, layouts)
    g_tiles, s_tiles, meta = plan({"X": x, "GRAD": grad}, p, reduction, *rule, loads=2 if reduction == 1 else 4)
    s_parts, tiles = shared_out(s_tiles, g_tiles * len(x))
    programs, order = programs_of(g_tiles, s_parts, len(x))
    flat = meta["FLAT"]
    strides = strides_of(grad, flat), strides_of(x, flat), p.stride()
    arguments = (*strides, *sizes_of(x, p), s_parts, tiles, threshold, slope)
    return s_parts, Launch(_gradient_of_logits_kernel, programs, arguments, meta | order)


@remembered
def _launch_x(
    layouts: tuple[Layout, ...], mean: torch.dtype, has_other: bool, rectified: bool, *constants: Any
) -> Launch:
    reduction, threshold, *rule = constants
    grad, x, p, other, dx = map(blank, layouts)
    maps = {"X": x, "GRAD": grad, "OTHER": other, "DX": dx}
    g_tiles, s_tiles, meta = plan(maps, p, reduction, *rule, loads=4 if reduction == 1 else 2)
    programs, order = programs_of(g_tiles, s_tiles, len(x))
    flat = meta["FLAT"]
    strides = (strides_of(grad, flat), strides_of(x, flat), p.stride(), strides_of(other, flat), strides_of(dx, flat))
    # More than 4 would not fit into registers, as what is added is held meanwhile; but a pack's are all or none.
    unroll = meta["UNROLL"] if meta["PACK"] else min(meta["UNROLL"], 4)
    meta |= {
        "UNROLL": unroll,
        "OTHER": has_other,
        "RECTIFIED": rectified,
        **order,
    }
    return Launch(_gradient_of_x_kernel, programs, (*strides, *sizes_of(x, p), s_tiles, threshold), meta)
