"""timm-registered networks: importing this package makes them known to ``timm.create_model``."""

from . import _needed as _needed
from . import _tracing as _tracing
from . import pix_mobilenetv2, pix_resnet, pix_resnet_prune, pix_vgg, resnet_small, soft_pool, vgg_small
from .pix_resnet import join_stages

__all__ = [
    "join_stages",
    "pix_mobilenetv2",
    "pix_resnet",
    "pix_resnet_prune",
    "pix_vgg",
    "resnet_small",
    "soft_pool",
    "vgg_small",
]
