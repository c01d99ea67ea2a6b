"""A bottleneck pair so small that a test can train it."""

from typing import Any

from timm.models import register_model
from timm.models.resnet import Bottleneck

from downmix.models.pix_resnet import SqueezeBottleneck
from downmix.models.resnet_small import SmallResNet

SIZES: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}


@register_model
def tiny_resnet(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    return SmallResNet(Bottleneck, num_classes=kwargs.get("num_classes", 2), **SIZES)


@register_model
def tiny_pix_resnet(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    return SmallResNet(
        SqueezeBottleneck, block_args={"squeeze": "pix"}, num_classes=kwargs.get("num_classes", 2), **SIZES
    )
