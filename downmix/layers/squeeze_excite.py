"""Squeeze-and-excitation: each channel scaled by a gate that all channels' global means decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._global_mean import global_mean
from ._input import check_count, lacks_batch


class SqueezeExcite(nn.Module):
    r"""Scales each channel by a gate computed from the global means of all.

    .. math:: s = \mathrm{mean}_{H,W} X, \qquad Y = \sigma(W_2\, \mathrm{ReLU}(W_1 s + b_1) + b_2) \cdot X

    Weights have the names and shapes of timm's ``SEModule``, so that they move both ways by ``load_state_dict``.

    Args:
        in_channels (int): C.
        reduction (int): r, C divided by the width between both maps (16 in the source).
        device, dtype: of the parameters.

    Shape:
        [B, C, H, W] or [C, H, W] to the same.

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if ``reduction`` leaves no channel between the maps, or the input has another number of channels.

    Example:
        >>> layer = SqueezeExcite(64)
        >>> layer(torch.randn(2, 64, 7, 7)).shape, layer.fc1.out_channels
        (torch.Size([2, 64, 7, 7]), 4)

    Source:
        Hu et al., *Squeeze-and-Excitation Networks*, CVPR 2018, section 3; official code hujie-frank/SENet. timm's
        ``SEModule`` rounds the width between the maps to a multiple of 8 unless ``rd_divisor=1`` or ``rd_channels``
        says otherwise.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory: Any = {"device": device, "dtype": dtype}
        width = narrowed(in_channels, reduction)
        self.fc1 = nn.Conv2d(in_channels, width, 1, **factory)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(width, in_channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if lacks_batch(self, x, self.fc1.in_channels):
            return SqueezeExcite.forward(self, x.unsqueeze(0)).squeeze(0)
        return x * torch.sigmoid(self.fc2(self.act(self.fc1(global_mean(x)[:, :, None, None]))))


def narrowed(in_channels: int, reduction: int) -> int:
    """C // reduction, the width between both maps of SE and of CBAM's channel gate."""
    check_count("in_channels", in_channels)
    check_count("reduction", reduction)
    if in_channels < reduction:
        raise ValueError(
            f"reduction must be at most in_channels, got {reduction} for {in_channels} channels; choose a smaller one"
        )
    return in_channels // reduction
