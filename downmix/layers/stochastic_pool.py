"""Stochastic pooling modules, drop-ins for nn.MaxPool: they draw in training and average in evaluation."""

from __future__ import annotations

from torch import Tensor

from ..ops import stochastic_pool as op
from ._pool import Pool


class _StochasticPool(Pool):
    def forward(self, x: Tensor) -> Tensor:
        return type(self).pool(x, *self.window, training=self.training)


class StochasticPool1d(_StochasticPool):
    """Takes the place of ``nn.MaxPool1d``, argument for argument. See :func:`downmix.stochastic_pool1d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.stochastic_pool1d)


class StochasticPool2d(_StochasticPool):
    """Takes the place of ``nn.MaxPool2d``, argument for argument. See :func:`downmix.stochastic_pool2d`.

    ``return_indices=True`` is refused.

    Example:
        >>> import torch
        >>> StochasticPool2d(3, stride=2, padding=1)(torch.rand(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    pool = staticmethod(op.stochastic_pool2d)


class StochasticPool3d(_StochasticPool):
    """Takes the place of ``nn.MaxPool3d``, argument for argument. See :func:`downmix.stochastic_pool3d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.stochastic_pool3d)
