"""Layouts of tensors, by which plans of launches are remembered: to plan takes longer than a small kernel."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
#: For functions of layouts; networks repeat themselves.
remembered = functools.lru_cache(maxsize=4096)


def layout(x: Tensor) -> Layout:
    """All of a tensor that decides how a kernel is launched."""
    return x.shape, x.stride(), x.dtype


def are_planes(*tensors: Tensor) -> bool:
    """Whether all maps are contiguous."""
    return all(tensor.is_contiguous() for tensor in tensors)


def are_pixels(*tensors: Tensor) -> bool:
    """Whether all maps are channels_last."""
    return all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def blank(layout: Layout, device: torch.device | str = "meta") -> Tensor:
    """A tensor of this layout, without values; and without memory, unless a device is named."""
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def why_no_layer(
    x: Layout, shortcut: Layout | None, weight: Layout, bias: Layout | None, autocast: bool, reduction: int
) -> str | None:
    """Why maps and parameters are none that a kernel of a whole PiX layer takes, or None."""
    channels, groups = x[0][1], -(-x[0][1] // reduction)
    maps = [blank(x)] if shortcut is None else [blank(x), blank(shortcut)]
    parameters = [blank(weight)] if bias is None else [blank(weight), blank(bias)]
    if weight[0][:2] != (groups, channels) or parameters[-1].shape[0] != groups or not are_planes(*parameters):
        return f"the kernel of a layer takes contiguous parameters for {channels} channels in groups of {reduction}"
    if maps[-1].shape != x[0] or not (are_planes(*maps) or are_pixels(*maps)):
        return "the kernel of a layer takes maps that are all contiguous or all channels_last"
    # Autocast leaves float64 alone, and else brings together what differs.
    free = autocast and torch.float64 not in (x[2], weight[2])
    if maps[-1].dtype != x[2] or parameters[-1].dtype != weight[2] or not (weight[2] == x[2] or free):
        return "the kernel of a layer takes maps and parameters of one dtype"
    return None
