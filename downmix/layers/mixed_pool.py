"""Mixed pooling modules, drop-ins for nn.MaxPool that learn their proportion of max and average."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import mixed_pool as op
from ..ops._windows import Size
from ._pool import Pool


class _MixedPool(Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        alpha: float = 0.5,
    ):
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        op.check_proportion(alpha)
        self.first_alpha = float(alpha)
        self.alpha = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha, self.first_alpha)

    def forward(self, x: Tensor) -> Tensor:
        return type(self).pool(x, self.alpha, *self.window)


class MixedPool1d(_MixedPool):
    """Takes the place of ``nn.MaxPool1d``, argument for argument. See :func:`downmix.mixed_pool1d`.

    ``alpha``, the proportion of the maximum, is a parameter, learned from 0.5 or what is given, without bounds;
    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.mixed_pool1d)


class MixedPool2d(_MixedPool):
    """Takes the place of ``nn.MaxPool2d``, argument for argument. See :func:`downmix.mixed_pool2d`.

    ``alpha``, the proportion of the maximum, is a parameter, learned from 0.5 or what is given, without bounds;
    ``return_indices=True`` is refused.

    Example:
        >>> import torch
        >>> MixedPool2d(3, stride=2, padding=1)(torch.randn(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    pool = staticmethod(op.mixed_pool2d)


class MixedPool3d(_MixedPool):
    """Takes the place of ``nn.MaxPool3d``, argument for argument. See :func:`downmix.mixed_pool3d`.

    ``alpha``, the proportion of the maximum, is a parameter, learned from 0.5 or what is given, without bounds;
    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.mixed_pool3d)
