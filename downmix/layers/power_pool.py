"""Power average pooling modules, drop-ins for nn.MaxPool."""

from __future__ import annotations

from torch import Tensor

from ..ops import power_pool as op
from ..ops._windows import Size
from ._pool import Pool


class _PowerAvgPool(Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        norm_type: float = 2.0,
    ):
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        op.check_norm_type(norm_type)
        self.norm_type = norm_type

    def forward(self, x: Tensor) -> Tensor:
        return type(self).pool(x, *self.window, norm_type=self.norm_type)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm_type={self.norm_type}"


class PowerAvgPool1d(_PowerAvgPool):
    """Takes the place of ``nn.MaxPool1d``, argument for argument. See :func:`downmix.power_avg_pool1d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.power_avg_pool1d)


class PowerAvgPool2d(_PowerAvgPool):
    """Takes the place of ``nn.MaxPool2d``, argument for argument. See :func:`downmix.power_avg_pool2d`.

    ``return_indices=True`` is refused.

    Example:
        >>> import torch
        >>> PowerAvgPool2d(3, stride=2, padding=1)(torch.rand(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    pool = staticmethod(op.power_avg_pool2d)


class PowerAvgPool3d(_PowerAvgPool):
    """Takes the place of ``nn.MaxPool3d``, argument for argument. See :func:`downmix.power_avg_pool3d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.power_avg_pool3d)
