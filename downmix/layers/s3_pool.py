"""S3 pooling modules: nn.MaxPool with stride = kernel_size, whose steps are drawn in training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..ops import s3_pool as op
from ..ops._windows import Size
from ._pool import Pool


class _S3Pool(Pool):
    space: ClassVar[int]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        grid_size: Size | None = None,
    ):
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        op.read_grid(self.space, kernel_size, stride, dilation, grid_size)
        self.grid_size = grid_size

    def forward(self, x: Tensor) -> Tensor:
        return type(self).pool(x, *self.window, grid_size=self.grid_size, training=self.training)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.grid_size is None else f"{text}, grid_size={self.grid_size}"


class S3Pool1d(_S3Pool):
    """Takes the place of ``nn.MaxPool1d`` where ``stride`` is ``kernel_size``. See :func:`downmix.s3_pool1d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.s3_pool1d)
    space = 1


class S3Pool2d(_S3Pool):
    """Takes the place of ``nn.MaxPool2d`` where ``stride`` is ``kernel_size``. See :func:`downmix.s3_pool2d`.

    ``return_indices=True`` is refused.

    Example:
        >>> import torch
        >>> S3Pool2d(2)(torch.randn(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    pool = staticmethod(op.s3_pool2d)
    space = 2


class S3Pool3d(_S3Pool):
    """Takes the place of ``nn.MaxPool3d`` where ``stride`` is ``kernel_size``. See :func:`downmix.s3_pool3d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.s3_pool3d)
    space = 3
