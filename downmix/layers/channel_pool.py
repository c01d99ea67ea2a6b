"""Channel pooling: the maximum or the mean of neighbouring channels, without parameters."""

from __future__ import annotations

from torch import Tensor, fx, nn

from ..ops._define import check_choice, node_of
from ..ops._windows import check_map
from ..ops.pix import pick_or_mix
from ._input import check_count

MODES = ("max", "mean")


class ChannelPool(nn.Module):
    r"""Pools along the channels as other pools do in space, at each pixel by itself.

    .. math:: Y_i = \max_{j < k} X_{i s + j} \quad\text{or}\quad \frac1k \sum_{j < k} X_{i s + j}

    The gradient of a maximum goes to the first of equal channels. Channels past the last whole window are left out.

    Args:
        kernel_size (int): k, channels in a window.
        stride (int): s, by default ``kernel_size``.
        mode (str): ``"max"`` or ``"mean"``.

    Shape:
        [B, C, H, W] or [C, H, W] to the same with (C − k) // s + 1 channels.

    Raises:
        TypeError: if ``kernel_size`` or ``stride`` is no integer, or the input no floating-point tensor.
        ValueError: if an argument is out of range, or the input has fewer channels than a window.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 3.0, 2.0, 0.0]).reshape(1, 4, 1, 1)
        >>> ChannelPool(2)(x).flatten(), ChannelPool(2, stride=1, mode="mean")(x).flatten()
        (tensor([3., 2.]), tensor([2.0000, 2.5000, 1.0000]))

    Source:
        Hussain and Wang, *Depth-wise Pooling*, RCAR 2019, as FACS describes it in section 4.2.1. No official code.
    """

    def __init__(self, kernel_size: int, stride: int | None = None, *, mode: str = "max"):
        super().__init__()
        check_choice("mode", mode, MODES)
        self.kernel_size, self.stride, self.mode = kernel_size, kernel_size if stride is None else stride, mode
        check_count("kernel_size", self.kernel_size)
        check_count("stride", self.stride)

    def forward(self, x: Tensor) -> Tensor:
        return _pool_channels(x, self.kernel_size, self.stride, self.mode)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, mode={self.mode}"


def _pool_channels(x: Tensor, kernel_size: int, stride: int, mode: str) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_pool_channels, x, kernel_size, stride, mode)
    check_map(2, x)
    channels = x.shape[-3]
    if channels < kernel_size:
        raise ValueError(
            f"x must have {kernel_size} channels or more, as a window has, got {channels} in {list(x.shape)}; "
            "choose a smaller kernel_size"
        )
    if stride == kernel_size:  # PiX with p = 1 is the same thing, and has fused kernels
        outputs = channels // kernel_size
        operator = "max" if mode == "max" else "avg"
        ones = x.new_ones(*x.shape[:-3], outputs)
        return pick_or_mix(x[..., : outputs * kernel_size, :, :], ones, kernel_size, operator=operator)
    # Counted from the front, as the old ONNX exporter takes -3 for another dimension.
    windows = x.unfold(x.dim() - 3, kernel_size, stride)  # [B, G, H, W, k]
    return windows.max(-1).values if mode == "max" else windows.mean(-1)
