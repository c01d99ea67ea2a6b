"""Layouts of tensors, by which plans of launches are remembered: to plan takes longer than a small kernel."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
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


def blank(layout: Layout) -> Tensor:
    """A tensor of this layout, without memory."""
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
