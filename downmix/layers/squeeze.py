"""The plain squeeze and its grouped form, and one call for every squeeze by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._define import check_choice
from ..ops.pix import check_reduction
from ._input import check_count, lacks_batch
from .channel_pool import ChannelPool
from .fbs import FBSSqueeze
from .pix import PiX


class ConvSqueeze(nn.Sequential):
    """[1×1 convolution, BatchNorm, ReLU]: what the other squeezes take the place of.

    With ``groups``, each output channel sees the channels of its group only; a channel shuffle behind lets the next
    layer's windows see all groups.

    Args:
        in_channels (int): C.
        reduction (int): input channels per output channel, a divisor of C.
        groups (int): of the convolution.
        device, dtype: of the parameters.

    Shape:
        [B, C, H, W] or [C, H, W] to [B, C / reduction, H, W] or [C / reduction, H, W].

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if the channels can't be divided so, or the input has another number of them.

    Source:
        The grouped form: Zhang et al., *ShuffleNet*, CVPR 2018, sections 3.1 and 3.2 (1×1 group convolution, BatchNorm,
        ReLU, shuffle).
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int,
        *,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_count("in_channels", in_channels)
        check_count("groups", groups)
        outputs, remainder = divmod(in_channels, check_reduction(reduction))
        if remainder or in_channels % groups or outputs % groups:
            raise ValueError(
                f"a squeeze of {in_channels} channels by {reduction} in {groups} groups does not come out even; "
                "choose numbers that divide"
            )
        super().__init__()
        self.in_channels, self.out_channels = in_channels, outputs
        self.conv = nn.Conv2d(in_channels, outputs, 1, groups=groups, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(outputs, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        if groups > 1:
            self.shuffle = nn.ChannelShuffle(groups)

    def forward(self, input: Tensor) -> Tensor:
        if lacks_batch(self, input, self.in_channels):  # which BatchNorm needs
            return ConvSqueeze.forward(self, input.unsqueeze(0)).squeeze(0)
        return super().forward(input)


def _channel_pool(
    in_channels: int, reduction: int, *, mode: str = "max", device: object = None, dtype: object = None
) -> ChannelPool:
    return ChannelPool(check_reduction(reduction), mode=mode)


SQUEEZES = {
    "pix": PiX,
    "dwp": _channel_pool,
    "fbs": FBSSqueeze,
    "group": partial(ConvSqueeze, groups=4),
    "conv": ConvSqueeze,
}


def create_squeeze(name: str, in_channels: int, reduction: int, **options: Any) -> nn.Module:
    """The squeeze of that name: C channels into C / reduction, to be followed by no norm and no activation.

    Args:
        name (str): ``"pix"`` (:class:`PiX`), ``"dwp"`` (:class:`ChannelPool`), ``"fbs"`` (:class:`FBSSqueeze`),
            ``"group"`` (:class:`ConvSqueeze` in 4 groups, with a shuffle) or ``"conv"`` (:class:`ConvSqueeze`).
        in_channels (int): C.
        reduction (int): input channels per output channel.
        **options: what that class takes, such as ``device``, or ``mode`` for ``"dwp"``.

    Raises:
        ValueError: if the name is unknown, or its class refuses the numbers.
        TypeError: if its class knows no such option.

    Example:
        >>> create_squeeze("group", 256, 4)[0]
        Conv2d(256, 64, kernel_size=(1, 1), stride=(1, 1), groups=4, bias=False)
    """
    check_choice("squeeze", name, tuple(SQUEEZES))
    return SQUEEZES[name](in_channels, reduction, **options)
