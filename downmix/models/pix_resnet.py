"""ResNets whose squeeze convolutions are PiX layers (channel squeezing mode)."""

from __future__ import annotations

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ..layers import PiX


class PiXBottleneck(Bottleneck):
    """timm's bottleneck with [1×1 squeeze, BatchNorm, ReLU] replaced by PiX; all else, and every name, stays.

    The reduction is the squeeze's own ratio: 1 in the first block of stage 1 of a ResNet-50, 2 in the first block of
    the later stages, 4 elsewhere. ``conv1.weight`` has the shape it has in the original network.

    Source:
        Kumar et al., *Pick-or-Mix*, CVPR 2024, supplement figure 1a.
    """

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any):
        super().__init__(inplanes, planes, *args, **kwargs)
        squeeze = self.conv1
        reduction, remainder = divmod(inplanes, squeeze.out_channels)
        if remainder:
            raise ValueError(
                f"PiX squeezes by an integer ratio, got {inplanes} channels to {squeeze.out_channels}; "
                "choose widths that divide, or keep the plain bottleneck for this network"
            )
        self.conv1 = PiX(inplanes, reduction, device=squeeze.weight.device, dtype=squeeze.weight.dtype)
        self.bn1 = nn.Identity()
        self.act1 = nn.Identity()


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({f"pix_resnet{depth}": _cfg() for depth in (50, 101, 152)})


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ResNet:
    return build_model_with_cfg(ResNet, variant, pretrained, block=PiXBottleneck, **kwargs)


@register_model
def pix_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 (v1.5) with PiX squeezes: 25.55M parameters, 3.19 GMACs at 224×224."""
    return _create("pix_resnet50", pretrained, layers=(3, 4, 6, 3), **kwargs)


@register_model
def pix_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101 (v1.5) with PiX squeezes: 44.5M parameters, 6.05 GMACs at 224×224."""
    return _create("pix_resnet101", pretrained, layers=(3, 4, 23, 3), **kwargs)


@register_model
def pix_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-152 (v1.5) with PiX squeezes: 60.1M parameters, 8.91 GMACs at 224×224."""
    return _create("pix_resnet152", pretrained, layers=(3, 8, 36, 3), **kwargs)
