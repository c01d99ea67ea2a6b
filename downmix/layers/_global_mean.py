"""The mean over a map, whose gradient is not written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops._watching import for_autograd, takes_plain_torch


def global_mean(x: Tensor) -> Tensor:
    """``x.mean((2, 3))``: [B, C, H, W] to [B, C].

    Torch writes the gradient of its own mean as a map in NCHW, and to add that to a gradient in channels_last takes
    longer than the mean does. This one is a view of [B, C].
    """
    traced = torch.compiler.is_compiling() or not isinstance(x, Tensor)  # torch.fx brings stand-ins
    return x.mean((2, 3)) if traced or takes_plain_torch() or not for_autograd((x,)) else _GlobalMean.apply(x)


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return (grad / ctx.shape[2:].numel())[:, :, None, None].expand(ctx.shape)
