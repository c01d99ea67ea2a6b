"""A plain network with three max pools for images of 32×32 and less, to compare pools with on two CPU cores."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .pix_resnet import cfg
from .pix_vgg import VGG, plain

default_cfgs = generate_default_cfgs(
    {
        "vgg_small": cfg(
            num_classes=10,
            input_size=(3, 32, 32),
            pool_size=(4, 4),
            crop_pct=1.0,
            first_conv="features.0.conv",
            classifier="head.fc",
        )
    }
)


@register_model
def vgg_small(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Three stages of a 3×3 convolution, BatchNorm, ReLU and a 2×2 max pool, 16 to 64 channels; ours, no paper's."""
    options = {"layer": plain, "stages": ((16,), (32,), (64,))} | kwargs
    features: dict[str, Any] = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(VGG, "vgg_small", pretrained, feature_cfg=features, **options)
