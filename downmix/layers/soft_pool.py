"""SoftPool modules, drop-ins for nn.MaxPool and nn.AdaptiveMaxPool."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..ops import soft_pool as op
from ..ops._define import check_choice
from ..ops._windows import Size
from ._pool import Pool, refuse_indices


class _SoftPool(Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        gradient: str = "exact",
    ):
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        check_choice("gradient", gradient, op.GRADIENTS)
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        return type(self).pool(x, *self.window, gradient=self.gradient)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.gradient == "exact" else f"{text}, gradient={self.gradient}"


class SoftPool1d(_SoftPool):
    """Takes the place of ``nn.MaxPool1d``, argument for argument. See :func:`downmix.soft_pool1d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.soft_pool1d)


class SoftPool2d(_SoftPool):
    """Takes the place of ``nn.MaxPool2d``, argument for argument. See :func:`downmix.soft_pool2d`.

    ``return_indices=True`` is refused.

    Example:
        >>> import torch
        >>> SoftPool2d(3, stride=2, padding=1)(torch.randn(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    pool = staticmethod(op.soft_pool2d)


class SoftPool3d(_SoftPool):
    """Takes the place of ``nn.MaxPool3d``, argument for argument. See :func:`downmix.soft_pool3d`.

    ``return_indices=True`` is refused.
    """

    pool = staticmethod(op.soft_pool3d)


class _AdaptiveSoftPool(nn.Module):
    space: ClassVar[int]

    def __init__(
        self,
        output_size: int | tuple[int | None, ...] | None,
        return_indices: bool = False,
        *,
        gradient: str = "exact",
    ):
        super().__init__()
        refuse_indices(return_indices, type(self).__name__)
        check_choice("gradient", gradient, op.GRADIENTS)
        sizes = output_size if isinstance(output_size, tuple | list) else (output_size,) * self.space
        if len(sizes) != self.space:
            raise ValueError(f"output_size must be a number or {self.space} of them, got {output_size}")
        self.output_size, self.gradient = tuple(sizes), gradient

    def forward(self, x: Tensor) -> Tensor:
        return op.adaptive_soft_pool(x, self.output_size, gradient=self.gradient)

    def extra_repr(self) -> str:
        text = f"output_size={self.output_size}"
        return text if self.gradient == "exact" else f"{text}, gradient={self.gradient}"


class AdaptiveSoftPool1d(_AdaptiveSoftPool):
    """Takes the place of ``nn.AdaptiveMaxPool1d``; 1 pools globally. See :func:`downmix.adaptive_soft_pool`."""

    space = 1


class AdaptiveSoftPool2d(_AdaptiveSoftPool):
    """Takes the place of ``nn.AdaptiveMaxPool2d``; 1 pools globally. See :func:`downmix.adaptive_soft_pool`.

    Example:
        >>> import torch
        >>> AdaptiveSoftPool2d(1)(torch.randn(2, 512, 7, 7)).shape
        torch.Size([2, 512, 1, 1])
    """

    space = 2


class AdaptiveSoftPool3d(_AdaptiveSoftPool):
    """Takes the place of ``nn.AdaptiveMaxPool3d``; 1 pools globally. See :func:`downmix.adaptive_soft_pool`."""

    space = 3
