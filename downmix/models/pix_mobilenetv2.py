"""MobileNet-v2 with PiX in place of the projection of its residual blocks, and both with full 3×3 convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from ..layers import PiX
from ..ops._define import check_choice
from .pix_resnet import cfg

NORMS = ("none", "pre", "post")
STAGES = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)


class PiXMobileNetV2(EfficientNet):
    """timm's MobileNet-v2 with [1×1 projection, BatchNorm] replaced by PiX in the blocks that have a shortcut.

    Their reduction is the expansion's ratio, 6; ``conv_pwl.weight`` has the shape it has in the original network.

    Args:
        norm: the BatchNorm beside PiX: ``"none"``, ``"pre"`` in front of it or ``"post"`` behind it.
        block_args, …: timm's.

    Source:
        FACS, section 4.2.3 and figure 4g.
    """

    def __init__(self, *args: Any, norm: str, **kwargs: Any):
        check_choice("norm", norm, NORMS)
        super().__init__(*args, **kwargs)
        for block in self.modules():
            if isinstance(block, InvertedResidual) and block.has_skip:
                conv: Any = block.conv_pwl
                factory: Any = {"device": conv.weight.device, "dtype": conv.weight.dtype}
                block.conv_pwl = PiX(conv.in_channels, conv.in_channels // conv.out_channels, **factory)
                if norm != "post":
                    block.bn3 = nn.Identity()
                if norm == "pre":  # where other networks of this family have their SE: right before the projection
                    block.se = nn.BatchNorm2d(conv.in_channels, **factory)


_cfgs: dict[str, Any] = {
    name: cfg(first_conv="conv_stem", classifier="classifier")
    for name in (
        "pix_mobilenetv2_100",
        "pix_mobilenetv2_100_bnpre",
        "pix_mobilenetv2_100_bnpost",
        "mobilenetv2_100_full",
        "pix_mobilenetv2_100_full",
        "pix_mobilenetv2_100_full_bnpre",
        "pix_mobilenetv2_100_full_bnpost",
        "test_pix_mobilenetv2",
    )
}
_cfgs["test_pix_mobilenetv2"] |= {"input_size": (3, 64, 64), "pool_size": (2, 2)}
default_cfgs = generate_default_cfgs(_cfgs)


def _create(variant: str, pretrained: bool, *, full: bool = False, width: float = 1.0, **kwargs: Any) -> EfficientNet:
    stages = [[stage] for stage in STAGES]
    options: dict[str, Any] = {
        "act_layer": nn.ReLU6,
        "block_args": decode_arch_def(stages, group_size=0 if full else None),  # timm's word for a single group is 0
        "round_chs_fn": partial(round_channels, multiplier=width),
    }
    network = PiXMobileNetV2 if "norm" in kwargs else EfficientNet
    features = {"flatten_sequential": True}
    return build_model_with_cfg(network, variant, pretrained, feature_cfg=features, **(options | kwargs))


@register_model
def pix_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 with PiX for projections, no BatchNorm beside it."""
    return _create("pix_mobilenetv2_100", pretrained, norm="none", **kwargs)


@register_model
def pix_mobilenetv2_100_bnpre(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 with BatchNorm and PiX for projections."""
    return _create("pix_mobilenetv2_100_bnpre", pretrained, norm="pre", **kwargs)


@register_model
def pix_mobilenetv2_100_bnpost(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 with PiX and BatchNorm for projections."""
    return _create("pix_mobilenetv2_100_bnpost", pretrained, norm="post", **kwargs)


@register_model
def mobilenetv2_100_full(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 whose depthwise convolutions are full ones: the baseline of those below."""
    return _create("mobilenetv2_100_full", pretrained, full=True, **kwargs)


@register_model
def pix_mobilenetv2_100_full(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 with full convolutions and PiX for projections, no BatchNorm beside it."""
    return _create("pix_mobilenetv2_100_full", pretrained, norm="none", full=True, **kwargs)


@register_model
def pix_mobilenetv2_100_full_bnpre(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 with full convolutions, and BatchNorm and PiX for projections."""
    return _create("pix_mobilenetv2_100_full_bnpre", pretrained, norm="pre", full=True, **kwargs)


@register_model
def pix_mobilenetv2_100_full_bnpost(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """MobileNet-v2 with full convolutions, and PiX and BatchNorm for projections."""
    return _create("pix_mobilenetv2_100_full_bnpost", pretrained, norm="post", full=True, **kwargs)


@register_model
def test_pix_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """A MobileNet-v2 with PiX for projections, for tests: a quarter of the width."""
    options: dict[str, Any] = {"width": 0.25, "num_features": 64}
    return _create("test_pix_mobilenetv2", pretrained, norm="none", **(options | kwargs))
