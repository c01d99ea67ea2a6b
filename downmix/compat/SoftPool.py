"""The published SoftPool package's names: ``from downmix.compat.SoftPool import SoftPool2d, soft_pool2d``.

Defaults are the published ones (kernel 2, the paper's gradient). Code that says ``import SoftPool`` is served by
``sys.modules["SoftPool"] = downmix.compat.SoftPool``, once, before it is imported.

Source:
    Stergiou et al., *Refining activation downsampling with SoftPool*, ICCV 2021, the published ``SoftPool`` module.
    Deviations: nothing overflows and NaN is not masked; ``force_inplace`` chose a slower way and is ignored.
"""

from __future__ import annotations

import warnings

from torch import Tensor

from .. import layers, ops
from ..ops._windows import Size


def soft_pool1d(x: Tensor, kernel_size: Size = 2, stride: Size | None = None, force_inplace: bool = False) -> Tensor:
    """See :func:`downmix.soft_pool1d`, with ``gradient="paper"``."""
    _note(force_inplace)
    return ops.soft_pool1d(x, kernel_size, stride, gradient="paper")


def soft_pool2d(x: Tensor, kernel_size: Size = 2, stride: Size | None = None, force_inplace: bool = False) -> Tensor:
    """See :func:`downmix.soft_pool2d`, with ``gradient="paper"``.

    Example:
        >>> import torch
        >>> soft_pool2d(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """
    _note(force_inplace)
    return ops.soft_pool2d(x, kernel_size, stride, gradient="paper")


def soft_pool3d(x: Tensor, kernel_size: Size = 2, stride: Size | None = None, force_inplace: bool = False) -> Tensor:
    """See :func:`downmix.soft_pool3d`, with ``gradient="paper"``."""
    _note(force_inplace)
    return ops.soft_pool3d(x, kernel_size, stride, gradient="paper")


class SoftPool1d(layers.SoftPool1d):
    """See :class:`downmix.SoftPool1d`, with the published defaults."""

    def __init__(self, kernel_size: Size = 2, stride: Size | None = None, force_inplace: bool = False):
        _note(force_inplace)
        super().__init__(kernel_size, stride, gradient="paper")


class SoftPool2d(layers.SoftPool2d):
    """See :class:`downmix.SoftPool2d`, with the published defaults."""

    def __init__(self, kernel_size: Size = 2, stride: Size | None = None, force_inplace: bool = False):
        _note(force_inplace)
        super().__init__(kernel_size, stride, gradient="paper")


class SoftPool3d(layers.SoftPool3d):
    """See :class:`downmix.SoftPool3d`, with the published defaults."""

    def __init__(self, kernel_size: Size = 2, stride: Size | None = None, force_inplace: bool = False):
        _note(force_inplace)
        super().__init__(kernel_size, stride, gradient="paper")


def _note(force_inplace: bool) -> None:
    if force_inplace:
        warnings.warn("force_inplace has no effect in downmix: nothing is changed in place", stacklevel=3)
