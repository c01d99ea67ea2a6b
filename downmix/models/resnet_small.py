"""A bottleneck ResNet pair for images of 32×32 and less, small enough to train on two CPU cores."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from .pix_resnet import SqueezeBottleneck, cfg


class SmallResNet(ResNet):
    """timm's ResNet with the stem usual for CIFAR: one 3×3 convolution of stride 1, and no max pool."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        stem = self.conv1
        self.conv1 = nn.Conv2d(
            stem.in_channels,
            stem.out_channels,
            3,
            padding=1,
            bias=False,
            device=stem.weight.device,
            dtype=stem.weight.dtype,
        )
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        info: dict[str, Any]
        for i, info in enumerate(self.feature_info):
            info["reduction"] //= 2 if i == 0 else 4


default_cfgs = generate_default_cfgs(
    {
        f"{name}": cfg(num_classes=10, input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0)
        for name in ("resnet29_small", "pix_resnet29_small")
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> SmallResNet:
    sizes: dict[str, Any] = {"layers": (2, 2, 3, 2), "channels": (16, 32, 64, 128)}
    return build_model_with_cfg(SmallResNet, variant, pretrained, **(sizes | kwargs))


@register_model
def resnet29_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """The baseline: 9 bottlenecks, 64 to 512 channels, stages of stride 1, 2, 2, 2."""
    return _create("resnet29_small", pretrained, block=Bottleneck, **kwargs)


@register_model
def pix_resnet29_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """The same with PiX squeezes: 4 in blocks that keep their width, 2 in the first block of stages 2 to 4."""
    return _create("pix_resnet29_small", pretrained, block=SqueezeBottleneck, block_args={"squeeze": "pix"}, **kwargs)
