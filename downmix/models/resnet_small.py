"""Bottleneck ResNets for images of 32×32 and less: a pair small enough to train on two CPU cores, and ResNet-50."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from .pix_resnet import SqueezeBottleneck, cfg, join_stages


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
        name: cfg(num_classes=10, input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0)
        for name in ("resnet29_small", "pix_resnet29_small", "resnet50_cifar", "pix_resnet50_cifar")
    }
)

_SMALL: dict[str, Any] = {"layers": (2, 2, 3, 2), "channels": (16, 32, 64, 128)}
_RESNET50: dict[str, Any] = {"layers": (3, 4, 6, 3)}
_PIX: dict[str, Any] = {"block": SqueezeBottleneck, "block_args": {"squeeze": "pix"}}


def _create(variant: str, pretrained: bool, own: dict[str, Any], kwargs: dict[str, Any]) -> SmallResNet:
    options: dict[str, Any] = {"block": Bottleneck} | own | kwargs
    model = build_model_with_cfg(SmallResNet, variant, pretrained, **options)
    join_stages(model)
    return model


@register_model
def resnet29_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """The baseline: 9 bottlenecks, 64 to 512 channels, stages of stride 1, 2, 2, 2."""
    return _create("resnet29_small", pretrained, _SMALL, kwargs)


@register_model
def pix_resnet29_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """The same with PiX squeezes: 4 in blocks that keep their width, 2 in the first block of stages 2 to 4."""
    return _create("pix_resnet29_small", pretrained, _PIX | _SMALL, kwargs)


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-50 (v1.5) with the stem usual for CIFAR."""
    return _create("resnet50_cifar", pretrained, _RESNET50, kwargs)


@register_model
def pix_resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """The same with PiX squeezes."""
    return _create("pix_resnet50_cifar", pretrained, _PIX | _RESNET50, kwargs)
