"""PiX on the CPU: one pass over the input, forward and backward, in NCHW and channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
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


def forward(
    x: Tensor, p: Tensor, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> Tensor:
    (batch, channels, height, width), groups = x.shape, p.shape[1]
    order = memory_format(x)
    y = torch.empty((batch, groups, height, width), dtype=x.dtype, memory_format=order)
    if y.numel() == 0:
        return y
    in_planes = order == torch.contiguous_format
    if not (_in_planes if in_planes else _in_pixels)(x):
        x = x.contiguous(memory_format=order)
    p = _probabilities(x, p)
    space, strides = height * width, _plane_strides if in_planes else _pixel_strides
    variant = _variant(x, p, reduction, operator, in_planes)
    block = pixels.pixels_a_task(batch, space)
    launch(
        (planes if in_planes else pixels).forward(*variant),
        batch * (groups if in_planes else -(-space // block)),
        x.numel(),
        *(x.data_ptr(), y.data_ptr(), p.data_ptr()),
        *(channels, groups, space, block),
        *_rule(channels, reduction, threshold, fusion, operator, legacy_tail),
        *strides(x),
        *strides(y),
    )
    return y


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
    (batch, channels, height, width), groups, dp_dtype = x.shape, p.shape[1], p.dtype
    dx = torch.empty_like(x)
    if grad.numel() == 0:
        return [dx, torch.zeros_like(p)]
    order = memory_format(x)
    in_planes = order == torch.contiguous_format
    fits = _in_planes if in_planes else _in_pixels
    x, grad, out = (t if fits(t) else t.contiguous(memory_format=order) for t in (x, grad, dx))
    p = _probabilities(x, p)
    space, strides = height * width, _plane_strides if in_planes else _pixel_strides
    variant = _variant(x, p, reduction, operator, in_planes)
    # In channels_last each block of pixels gives its part of dp.
    block = pixels.pixels_a_task(batch, space)
    blocks = 1 if in_planes else -(-space // block)
    dp = torch.empty((batch, blocks, groups), dtype=p.dtype)
    launch(
        (planes if in_planes else pixels).backward(*variant),
        batch * (groups if in_planes else blocks),
        x.numel(),
        *(tensor.data_ptr() for tensor in (grad, x, out, p, dp)),
        *(channels, groups, space, block),
        *_rule(channels, reduction, threshold, fusion, operator, legacy_tail),
        *strides(grad),
        *strides(x),
        *strides(out),
    )
    if out is not dx:
        dx.copy_(out)
    return [dx, (dp.squeeze(1) if blocks == 1 else dp.sum(1)).to(dp_dtype)]


def _variant(x: Tensor, p: Tensor, reduction: int, operator: str, in_planes: bool) -> tuple[Any, ...]:
    """What a kernel is made for: an unrolled reduction or 0, maxima or with −1 minima, as −max(−x), and dtypes."""
    known = reduction in _IN_PLANES and x.shape[1] % reduction == 0 if in_planes else reduction in _IN_PIXELS
    return reduction if known else 0, -1 if operator == "min" else 1, x.dtype, p.dtype


def _probabilities(x: Tensor, p: Tensor) -> Tensor:
    return p.to(compute_dtype(x, p)).contiguous()


def _plane_strides(x: Tensor) -> tuple[int, ...]:
    return x.stride()[:2]


def _in_planes(x: Tensor) -> bool:
    """Whether each channel's map is one run of memory."""
    _, _, step_h, step_w = x.stride()
    height, width = x.shape[2:]
    return (width == 1 or step_w == 1) and (height == 1 or step_h == width)


def _in_pixels(x: Tensor) -> bool:
    """Whether each pixel's channels are one run of memory, and the pixels evenly apart."""
    _, step_c, step_h, step_w = x.stride()
    return step_c == 1 and (x.shape[2] == 1 or step_h == x.shape[3] * step_w)


def _pixel_strides(x: Tensor) -> tuple[int, int]:
    return x.stride(0), x.stride(3)


def _rule(
    channels: int, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> tuple[int, int, int, int]:
    """What decides how a group is reduced: its size, what the last one is divided by, the mode, and the threshold."""
    mode = BLEND if fusion == "weighted" else {"max+avg": BY_THRESHOLD, "avg": MIX}.get(operator, PICK)
    tail = reduction if legacy_tail else channels % reduction or reduction
    return reduction, tail, mode, bits(threshold)
