"""timm-registered networks: importing this package makes them known to ``timm.create_model``."""

from . import pix_resnet, resnet_small

__all__ = ["pix_resnet", "resnet_small"]
