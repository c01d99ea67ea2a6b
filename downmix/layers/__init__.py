"""Modules: parameters around one operator, no maths."""

from .cbam import CBAM, translate_cbam
from .channel_pool import ChannelPool
from .fbs import FBSConv2d, FBSSqueeze, fbs_penalty, linear_density, set_density
from .pix import PiX
from .soft_pool import (
    AdaptiveSoftPool1d,
    AdaptiveSoftPool2d,
    AdaptiveSoftPool3d,
    SoftPool1d,
    SoftPool2d,
    SoftPool3d,
)
from .squeeze import ConvSqueeze, create_squeeze
from .squeeze_excite import SqueezeExcite

__all__ = [
    "CBAM",
    "AdaptiveSoftPool1d",
    "AdaptiveSoftPool2d",
    "AdaptiveSoftPool3d",
    "ChannelPool",
    "ConvSqueeze",
    "FBSConv2d",
    "FBSSqueeze",
    "PiX",
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
    "SqueezeExcite",
    "create_squeeze",
    "fbs_penalty",
    "linear_density",
    "set_density",
    "translate_cbam",
]
