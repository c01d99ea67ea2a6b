"""What is computed: a file an operator."""

from ._define import explain_backend, use_backend
from .lip_pool import lip_pool1d, lip_pool2d, lip_pool3d
from .pix import pick_or_mix
from .soft_pool import adaptive_soft_pool, soft_pool1d, soft_pool2d, soft_pool3d

__all__ = [
    "adaptive_soft_pool",
    "explain_backend",
    "lip_pool1d",
    "lip_pool2d",
    "lip_pool3d",
    "pick_or_mix",
    "soft_pool1d",
    "soft_pool2d",
    "soft_pool3d",
    "use_backend",
]
