"""Networks so small that a test can train them, under names that timm knows."""

from typing import Any

import torch
from timm.layers import DropPath
from timm.models import register_model
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from downmix.layers import FBSConv2d
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


class TinyNet(nn.Module):
    """Two convolutions, dropout, stochastic depth and a classifier, with BatchNorm or without."""

    def __init__(self, num_classes: int, drop: float, drop_path: float, norm: bool):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.second = nn.Conv2d(4, 4, 3, 1, 1)
        self.drop_path, self.drop = DropPath(drop_path), nn.Dropout(drop)
        self.fc = nn.Linear(4, num_classes)
        self.pretrained_cfg = {"classifier": "fc"}

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.drop_path(self.second(x))
        return self.fc(self.drop(x.mean((2, 3))))


@register_model
def tiny_net(
    pretrained: bool = False, num_classes: int = 2, drop_rate: float = 0.0, drop_path_rate: float = 0.0, **kwargs: Any
) -> TinyNet:
    return TinyNet(num_classes, drop_rate, drop_path_rate, norm=True)


@register_model
def tiny_flat(pretrained: bool = False, num_classes: int = 2, **kwargs: Any) -> nn.Sequential:
    """For images of 8×8 alone."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


@register_model
def tiny_fbs(pretrained: bool = False, num_classes: int = 2, **kwargs: Any) -> nn.Sequential:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(
        FBSConv2d(3, 8, 3, 2), nn.ReLU(), FBSConv2d(8, 8, 3), nn.ReLU(), pool, nn.Linear(8, num_classes)
    )


@register_model
def tiny_plain(
    pretrained: bool = False, num_classes: int = 2, drop_rate: float = 0.0, drop_path_rate: float = 0.0, **kwargs: Any
) -> TinyNet:
    return TinyNet(num_classes, drop_rate, drop_path_rate, norm=False)
