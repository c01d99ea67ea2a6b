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


def blank(layout: Layout) -> Tensor:
    """A tensor of this layout, without memory."""
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
