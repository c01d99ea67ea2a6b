"""The end of a residual block and the start of a PiX layer, in one pass over the map."""

from __future__ import annotations

import torch
from torch import Tensor

from ._define import InplaceOperator


def _reference(x: Tensor, shortcut: Tensor | None) -> Tensor:
    return (x if shortcut is None else x.add_(shortcut).relu_()).mean((2, 3))


# Writes ReLU(x + shortcut) over x, [B, C, H, W], where there is a shortcut, and returns the mean of x, [B, C], or
# [B, parts, C], which add up to it: a kernel may leave that to who reads them.
add_relu_mean_ = InplaceOperator("add_relu_mean_", _reference, stem="add_relu_mean")


def whole(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean, [B, C], from what ``add_relu_mean_`` gives."""
    return mean if mean.dim() == 2 else mean.sum(1).to(dtype)
