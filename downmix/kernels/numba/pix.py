"""PiX on the CPU: one pass over the input, forward and backward, in NCHW and channels_last."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
from .._layouts import Layout, blank, layout, remembered
from . import _pix_pixels as pixels
from . import _pix_planes as planes
from ._common import ELEMENT
from ._launch import bits, launch
from ._pix_common import BLEND, BY_THRESHOLD, MIX, PICK

# Reductions that get code of their own: in channels_last nearly all, as others are read one by one; in NCHW those of
# the papers' networks, which are up to a quarter faster for it.
_IN_PIXELS, _IN_PLANES = range(1, 17), (2, 4, 8)


def why_not(
    x: Tensor, p: Tensor, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> str | None:
    if fusion == "weighted" and operator != "max+avg":
        return f"weighted fusion of {operator!r} alone leaves the probabilities no say"
    if x.dtype not in ELEMENT:
        return f"the CPU kernels don't know {x.dtype}"
    if p.dtype == torch.float64 != x.dtype:
        return f"the CPU kernels compute in float32 for {x.dtype}, and p is float64"
    return None


def forward(x: Tensor, p: Tensor, *rule: Any) -> Tensor:
    order, p = memory_format(x), _probabilities(x, p)
    y = torch.empty((x.shape[0], p.shape[1], *x.shape[2:]), dtype=x.dtype, memory_format=order)
    if y.numel() == 0:
        return y
    x = _readable(x, order)
    plan = _plan("forward", layout(x), (x.stride(), y.stride()), p.dtype, *rule)
    launch(plan.kernel, plan.tasks, x.numel(), x.data_ptr(), y.data_ptr(), p.data_ptr(), *plan.numbers)
    return y


def backward(grad: Tensor, x: Tensor, p: Tensor, *rule: Any) -> list[Tensor]:
    dx, dp_dtype = torch.empty_like(x), p.dtype
    if grad.numel() == 0:
        return [dx, torch.zeros_like(p)]
    order, p = memory_format(x), _probabilities(x, p)
    grad, x, out = (_readable(tensor, order) for tensor in (grad, x, dx))
    plan = _plan("backward", layout(x), (grad.stride(), x.stride(), out.stride()), p.dtype, *rule)
    dp = torch.empty((x.shape[0], plan.blocks, p.shape[1]), dtype=p.dtype)
    launch(plan.kernel, plan.tasks, x.numel(), *(t.data_ptr() for t in (grad, x, out, p, dp)), *plan.numbers)
    if out is not dx:
        dx.copy_(out)
    return [dx, (dp.squeeze(1) if plan.blocks == 1 else dp.sum(1)).to(dp_dtype)]


class _Plan(NamedTuple):
    """What a launch needs but for addresses; ``blocks`` is how many parts the gradient of p comes in."""

    kernel: Any
    tasks: int
    blocks: int
    numbers: tuple[int, ...]


class Walk(NamedTuple):
    """How a map is walked: in which layout, that of the output too, what a kernel is made for (an unrolled reduction or
    0; maxima, or with -1 minima, as -max(-x)), and what decides how a group is reduced: its size, what the last one is
    divided by, the mode and the threshold."""

    order: torch.memory_format
    made_for: tuple[int, int]
    rule: tuple[int, int, int, int]


def walk(x: Tensor, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool) -> Walk:
    """For a map, of which the values don't matter."""
    channels, order = x.shape[1], memory_format(x)
    in_planes = order == torch.contiguous_format
    known = reduction in _IN_PLANES and channels % reduction == 0 if in_planes else reduction in _IN_PIXELS
    mode = BLEND if fusion == "weighted" else {"max+avg": BY_THRESHOLD, "avg": MIX}.get(operator, PICK)
    tail = reduction if legacy_tail else channels % reduction or reduction
    made_for = reduction if known else 0, -1 if operator == "min" else 1
    return Walk(order, made_for, (reduction, tail, mode, bits(threshold)))


@remembered
def _plan(name: str, x: Layout, strides: tuple[tuple[int, ...], ...], number: torch.dtype, *rule: Any) -> _Plan:
    (batch, channels, height, width), _, element = x
    groups, space = -(-channels // rule[0]), height * width
    order, made_for, how = walk(blank(x), *rule)
    in_planes = order == torch.contiguous_format
    run = getattr(planes if in_planes else pixels, name)(*made_for, element, number)
    block = pixels.pixels_a_task(batch, space)
    blocks = 1 if in_planes else -(-space // block)
    # From sample to sample, and from plane to plane or from pixel to pixel.
    inner = 1 if in_planes else 3 if width > 1 else 2
    steps = [stride[i] for stride in strides for i in (0, inner)]
    tasks = batch * (groups if in_planes else blocks)
    return _Plan(run, tasks, blocks, (channels, groups, space, block, *how, *steps))


def _probabilities(x: Tensor, p: Tensor) -> Tensor:
    return p.to(compute_dtype(x, p)).contiguous()


def _readable(x: Tensor, order: torch.memory_format) -> Tensor:
    """Itself where a kernel can walk it: planes, or in channels_last pixels, that are runs of memory, evenly apart.

    A step along a dimension of size 1 is never taken and may be anything, also in what is_contiguous.
    """
    (_, step_c, step_h, step_w), (height, width) = x.stride(), x.shape[2:]
    if order == torch.contiguous_format:
        fits = (width == 1 or step_w == 1) and (height == 1 or step_h == width)
    else:
        fits = step_c == 1 and (height == 1 or step_h == width * step_w)
    return x if fits else x.contiguous(memory_format=order)
