"""The end of a residual block and the start of a PiX layer, in one pass over the map."""

from __future__ import annotations

import torch
from torch import Tensor

from ._define import InplaceOperator


def add_relu_mean_(x: Tensor, shortcut: Tensor) -> Tensor:
    r"""Writes :math:`\mathrm{ReLU}(x + s)` over ``x`` and returns its mean over H and W.

    For :func:`downmix.fuse`. A NaN stays one.

    Args:
        x (Tensor[B, C, H, W]): is overwritten.
        shortcut (Tensor[B, C, H, W]): s, of the same dtype.

    Returns:
        Tensor[B, C], or [B, parts, C], which add up to it: a kernel may leave that to who reads them.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2)
        >>> add_relu_mean_(x, torch.ones_like(x)), x.flatten()
        (tensor([[1.5000]]), tensor([0., 3.]))
    """
    return _add_relu_mean_(x, shortcut)


def whole(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean, [B, C], from what :func:`add_relu_mean_` gives."""
    return mean if mean.dim() == 2 else mean.sum(1).to(dtype)


def _reference(x: Tensor, shortcut: Tensor) -> Tensor:
    return x.add_(shortcut).relu_().mean((2, 3))


_add_relu_mean_ = InplaceOperator("add_relu_mean_", _reference, stem="add_relu_mean")
