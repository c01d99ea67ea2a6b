"""What is computed: a file an operator."""

from ._define import explain_backend, use_backend
from .lip_pool import lip_pool1d, lip_pool2d, lip_pool3d
from .mixed_pool import mixed_pool1d, mixed_pool2d, mixed_pool3d
from .pix import pick_or_mix
from .power_pool import power_avg_pool1d, power_avg_pool2d, power_avg_pool3d
from .s3_pool import s3_pool1d, s3_pool2d, s3_pool3d
from .soft_pool import adaptive_soft_pool, soft_pool1d, soft_pool2d, soft_pool3d
from .stochastic_pool import stochastic_pool1d, stochastic_pool2d, stochastic_pool3d

__all__ = [
    "adaptive_soft_pool",
    "explain_backend",
    "lip_pool1d",
    "lip_pool2d",
    "lip_pool3d",
    "mixed_pool1d",
    "mixed_pool2d",
    "mixed_pool3d",
    "pick_or_mix",
    "power_avg_pool1d",
    "power_avg_pool2d",
    "power_avg_pool3d",
    "s3_pool1d",
    "s3_pool2d",
    "s3_pool3d",
    "soft_pool1d",
    "soft_pool2d",
    "soft_pool3d",
    "stochastic_pool1d",
    "stochastic_pool2d",
    "stochastic_pool3d",
    "use_backend",
]
