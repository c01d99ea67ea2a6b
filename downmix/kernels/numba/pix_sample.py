"""A whole PiX layer on the CPU in one launch, a task a sample: sum, ReLU, mean, linear map, gate and fusion.

So a sample stays in the cache between its mean and its fusion, and a small map takes less than six operators' calls.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ...ops._define import compute_dtype
from ...ops._watching import plain
from .._layouts import Layout, blank, layout, remembered, why_no_layer
from . import _pix_pixels as pixels
from . import _pix_planes as planes
from . import pix
from ._common import ELEMENT, compiled_for, memory
from ._launch import arguments, bits, kernel, launch, number_from, tasks
from ._vector_memory import load
from ._vectors import lanes_between, spread, total
from .add_relu_mean import PIXELS, sum_of_plane, sum_pixels

_FEW = 1 << 17  # elements, for which one thread takes no longer than all that share them out by operators
_DOUBLE = np.empty(0, np.float64)
# Products of the linear map, and that many for each element of the map: beyond, samples should share a weight that is
# read, as in torch's matrix product.
_FEW_PRODUCTS, _PRODUCTS_AN_ELEMENT = 1 << 19, 6


def why_not(
    x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor | None, slope: float, *rule: Any
) -> str | None:
    if not (
        weight.is_cpu and (shortcut is None or shortcut.is_cpu) and (bias is None or (bias.is_cpu and plain((bias,))))
    ):
        return "the CPU kernel of a layer takes maps and parameters that lie in the CPU's memory"
    return _why_not(
        layout(x),
        None if shortcut is None else layout(shortcut),
        layout(weight),
        None if bias is None else layout(bias),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        *rule,
    )


@remembered
def _why_not(
    x_layout: Layout,
    shortcut: Layout | None,
    weight_layout: Layout,
    bias: Layout | None,
    autocast: bool,
    threads: int,
    *rule: Any,
) -> str | None:
    if reason := why_no_layer(x_layout, shortcut, weight_layout, bias, autocast, rule[0]):
        return reason
    x, weight = blank(x_layout), blank(weight_layout)
    batch, elements = x.shape[0], x.numel()
    if elements == 0 or (elements > _FEW and batch % threads and batch < 4 * threads):
        return f"{batch} samples are not to be shared out evenly among {threads} threads"
    if batch * weight.numel() > max(_FEW_PRODUCTS, _PRODUCTS_AN_ELEMENT * elements):
        return "torch's own matrix product is faster for so large a weight"
    return pix.why_not(x, weight, *rule)


def forward(
    x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor | None, slope: float, *rule: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What the layer gives, [B, G, H, W], the mean [B, C] and the probabilities [B, G], both as wide as computed.

    Args:
        x (Tensor[B, C, H, W]): the map; ReLU(x + shortcut) is written over it where there is a shortcut.
        shortcut (Tensor[B, C, H, W]): or None.
        weight (Tensor[G, C, 1, 1]): W.
        bias (Tensor[G]): b, or None.
        slope: p = σ(slope · (W · mean + b)).
        *rule: as :func:`downmix.kernels.numba.pix.forward` takes behind p.
    """
    batch, channels, groups = *x.shape[:2], weight.shape[0]
    run, order, number, numbers = _plan(layout(x), weight.dtype, slope, *rule)
    y = torch.empty((batch, groups, *x.shape[2:]), dtype=x.dtype, memory_format=order)
    mean, p = torch.empty(batch, channels, dtype=number), torch.empty(batch, groups, dtype=number)
    in_planes = order == torch.contiguous_format
    # Room for sums in float64: of many parts, each of which lies in ``mean`` for a while, a narrower sum would round
    # worse than torch's mean.
    sums = None if in_planes else torch.empty_like(mean, dtype=torch.float64)
    given = (0 if tensor is None else tensor.data_ptr() for tensor in (x, shortcut, weight, bias, y, mean, p, sums))
    launch(run, batch, x.numel(), *given, *numbers)
    return y, mean, p


class _Plan(NamedTuple):
    """What a launch needs but for addresses, the layout of the output, and the dtype that is computed in."""

    kernel: Any
    order: torch.memory_format
    number: torch.dtype
    numbers: tuple[int, ...]


@remembered
def _plan(x: Layout, parameters: torch.dtype, slope: float, *rule: Any) -> _Plan:
    (_, channels, height, width), _, element = x
    order, made_for, how = pix.walk(blank(x), *rule)
    number = compute_dtype(blank(x))
    run = (_planes if order == torch.contiguous_format else _pixels)(*made_for, element, parameters, number)
    numbers = channels, -(-channels // rule[0]), height * width, bits(slope), *how
    return _Plan(run, order, number, numbers)


@functools.cache
def _planes(unrolled: int, sign: int, element: Any, parameters: Any, number: Any) -> Any:
    """The kernel where each channel's map is one run of memory; a task is a sample. See ``_pix_planes.forward``."""
    parameter = ELEMENT[parameters]
    element, number, lanes, real = compiled_for(element, number)

    @kernel()
    def run(at):
        maps, (mean, p, _), linear, sizes, (reduction, tail, mode, threshold) = _given(at, element, parameter, number)
        (x, shortcut, has_shortcut, y), (channels, groups, space) = maps, sizes
        signs, nan = spread(real(sign)), spread(real(np.nan))
        for b in tasks(at):
            for plane in range(b * channels, (b + 1) * channels):
                mean[plane] = sum_of_plane(x, shortcut, has_shortcut, plane * space, space, real, lanes, number) / space
            row = b * channels
            _open_gates(mean, row, p, b * groups, linear, sizes, real, lanes, number)
            for g in range(groups):
                first, out = g * reduction, b * groups + g
                size = unrolled if unrolled else min(reduction, channels - first)
                divisor = real(tail if g == groups - 1 else reduction)
                rule = size, divisor, p[out], mode, real(number_from(threshold)), signs, nan
                planes.fuse_group(x, (row + first) * space, space, y, out * space, space, rule, real, lanes, number)

    return run


@functools.cache
def _pixels(unrolled: int, sign: int, element: Any, parameters: Any, number: Any) -> Any:
    """The same where each pixel's channels are one run of memory. See ``_pix_pixels.forward``."""
    parameter = ELEMENT[parameters]
    element, number, lanes, real = compiled_for(element, number)
    size = unrolled or 1  # what is never run must compile, too

    @kernel()
    def run(at):
        maps, (mean, p, sums), linear, sizes, (reduction, tail, mode, threshold) = _given(
            at, element, parameter, number
        )
        (x, shortcut, has_shortcut, y), (channels, groups, space) = maps, sizes
        constants = spread(real(sign)), spread(real(np.nan)), spread(real(1)), spread(real(number_from(threshold)))
        rule = channels, groups, reduction, tail, mode, constants, unrolled, size
        for b in tasks(at):
            row = b * channels
            for c in range(row, row + channels):
                sums[c] = 0.0
            for first in range(b * space, (b + 1) * space, PIXELS):
                block = first, min(first + PIXELS, (b + 1) * space)
                sum_pixels(x, shortcut, has_shortcut, block, channels, mean, row, real, lanes, number)
                for c in range(row, row + channels):
                    sums[c] += mean[c]
            for c in range(row, row + channels):
                mean[c] = sums[c] / space
            _open_gates(mean, row, p, b * groups, linear, sizes, real, lanes, number)
            for i in range(b * space, (b + 1) * space):
                pixels.fuse_pixel(x, i * channels, y, i * groups, p, b * groups, rule, real, lanes, number)

    return run


@njit(inline="always")
def _given(at, element, parameter, number):
    """What a launch is given: maps, what is computed on the way, the linear map, sizes, and how groups are reduced."""
    (
        x_at, shortcut_at, weight_at, bias_at, y_at, mean_at, p_at, sums_at, channels, groups, space, slope,
        reduction, tail, mode, threshold,
    ) = arguments(at, 16)  # fmt: skip
    maps = memory(x_at, element), memory(shortcut_at, element), shortcut_at != 0, memory(y_at, element)
    computed = memory(mean_at, number), memory(p_at, number), memory(sums_at, _DOUBLE)
    linear = memory(weight_at, parameter), memory(bias_at, parameter), bias_at != 0, number_from(slope)
    return maps, computed, linear, (channels, groups, space), (reduction, tail, mode, threshold)


@njit(inline="always")
def _open_gates(mean, row, p, out, linear, sizes, real, lanes, number):
    """The probabilities of a sample from its mean at ``row``, written from ``out`` on."""
    (weight, bias, has_bias, slope), (channels, groups, _) = linear, sizes
    for first in range(0, groups, 4):  # whose sums don't wait for each other
        g = first, min(first + 1, groups - 1), min(first + 2, groups - 1), min(first + 3, groups - 1)
        g0, g1, g2, g3 = g
        s0 = s1 = s2 = s3 = spread(real(0))
        for c in range(0, channels, lanes):
            mask = lanes_between(number, 0, channels - c)
            value = load(mean, row + c, mask)
            s0 = s0 + value * load(weight, g0 * channels + c, mask)
            s1 = s1 + value * load(weight, g1 * channels + c, mask)
            s2 = s2 + value * load(weight, g2 * channels + c, mask)
            s3 = s3 + value * load(weight, g3 * channels + c, mask)
        logits = total(s0), total(s1), total(s2), total(s3)
        for k in range(4):
            logit = logits[k] + total(load(bias, g[k], lanes_between(number, 0, 1))) if has_bias else logits[k]
            p[out + g[k]] = 1 / (1 + math.exp(-slope * logit))
