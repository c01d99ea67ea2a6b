"""LIP modules: the pool, and the networks of its source that give the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops import lip_pool as op
from ..ops._windows import Size
from ._input import check_count, lacks_batch
from ._pool import Pool

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_LARGEST_LOGIT = 12.0  # so that no weight is above e¹² times another


class _LIPPool(Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        logits: nn.Module,
    ):
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return type(self).pool(x, self.logits(x), *self.window)


class LIPPool1d(_LIPPool):
    """``nn.MaxPool1d``'s arguments, and a module that gives the logits. See :func:`downmix.lip_pool1d`."""

    pool = staticmethod(op.lip_pool1d)


class LIPPool2d(_LIPPool):
    """``nn.MaxPool2d``'s arguments, and a module that gives the logits. See :func:`downmix.lip_pool2d`.

    Args:
        logits (nn.Module): from x to logits of x's shape, such as :class:`SimplifiedLogit`. ``nn.Identity()`` makes
            this SoftPool.

    Example:
        >>> LIPPool2d(3, stride=2, padding=1, logits=SimplifiedLogit(64))(torch.randn(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    pool = staticmethod(op.lip_pool2d)


class LIPPool3d(_LIPPool):
    """``nn.MaxPool3d``'s arguments, and a module that gives the logits. See :func:`downmix.lip_pool3d`."""

    pool = staticmethod(op.lip_pool3d)


class _InstanceNorm(nn.GroupNorm):
    """``nn.InstanceNorm`` with scale and shift, in any number of dimensions. Torch's refuses maps of a single value;
    here such a value, its own mean, becomes the shift."""

    def __init__(self, channels: int):
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class _LogitNetwork(nn.Sequential):
    """Layers whose last convolution, then normalised, starts as 0, so that all logits are equal: average pooling."""

    def __init__(self, channels: int, dims: int, *layers: nn.Module):
        super().__init__(*layers)
        self.channels, self.dims = channels, dims
        nn.init.zeros_(layers[-2].weight)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        if lacks_batch(self, input, self.channels, self.dims):  # which the normalisation needs
            return _LogitNetwork.forward(self, input.unsqueeze(0)).squeeze(0)
        return _LARGEST_LOGIT * super().forward(input).sigmoid()


class SimplifiedLogit(_LogitNetwork):
    """3×3 convolution, InstanceNorm and 12 · sigmoid; as created, LIP with it is average pooling.

    Args:
        channels (int): of the map.
        dims (int): its spatial dimensions, 1, 2 or 3.

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if ``dims`` is none of them, or the input has another number of channels or dimensions.

    Source:
        Gao, Wang, Wu, *LIP: Local Importance-based Pooling*, ICCV 2019, section 3.4; published as ``SimplifiedLIP``.
        Deviation: maps of a single value are taken.
    """

    def __init__(self, channels: int, dims: int = 2):
        convolution = _convolution(dims)
        check_count("channels", channels)
        layers = convolution(channels, channels, 3, padding=1, bias=False), _InstanceNorm(channels)
        super().__init__(channels, dims, *layers)


class BottleneckLogit(_LogitNetwork):
    """1×1, 3×3 and 1×1 convolutions, each with InstanceNorm, ReLU in between, and 12 · sigmoid; as created, LIP with
    it is average pooling.

    Args:
        channels (int): of the map.
        hidden (int): channels in between.
        dims (int): spatial dimensions of the map, 1, 2 or 3.

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if ``dims`` is none of them, or the input has another number of channels or dimensions.

    Source:
        As :class:`SimplifiedLogit`; published as ``BottleneckLIP``.
    """

    def __init__(self, channels: int, hidden: int = 128, dims: int = 2):
        convolution = _convolution(dims)
        check_count("channels", channels)
        check_count("hidden", hidden)
        super().__init__(
            channels,
            dims,
            *(convolution(channels, hidden, 1, bias=False), _InstanceNorm(hidden), nn.ReLU(inplace=True)),
            *(convolution(hidden, hidden, 3, padding=1, bias=False), _InstanceNorm(hidden), nn.ReLU(inplace=True)),
            *(convolution(hidden, channels, 1, bias=False), _InstanceNorm(channels)),
        )


def _convolution(dims: int) -> Callable[..., nn.Module]:
    if dims not in _CONVOLUTIONS:
        raise ValueError(f"dims must be 1, 2 or 3, the spatial dimensions of the map, got {dims!r}")
    return _CONVOLUTIONS[dims]
