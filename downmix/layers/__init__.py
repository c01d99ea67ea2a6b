"""Modules: parameters around one operator, no maths."""

from .cbam import CBAM, translate_cbam
from .channel_pool import ChannelPool
from .fbs import FBSConv2d, FBSSqueeze, fbs_penalty, linear_density, set_density
from .lip_pool import BottleneckLogit, LIPPool1d, LIPPool2d, LIPPool3d, SimplifiedLogit
from .mixed_pool import MixedPool1d, MixedPool2d, MixedPool3d
from .pix import PiX
from .pools import create_pool
from .power_pool import PowerAvgPool1d, PowerAvgPool2d, PowerAvgPool3d
from .s3_pool import S3Pool1d, S3Pool2d, S3Pool3d
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
from .stochastic_pool import StochasticPool1d, StochasticPool2d, StochasticPool3d

__all__ = [
    "CBAM",
    "AdaptiveSoftPool1d",
    "AdaptiveSoftPool2d",
    "AdaptiveSoftPool3d",
    "BottleneckLogit",
    "ChannelPool",
    "ConvSqueeze",
    "FBSConv2d",
    "FBSSqueeze",
    "LIPPool1d",
    "LIPPool2d",
    "LIPPool3d",
    "MixedPool1d",
    "MixedPool2d",
    "MixedPool3d",
    "PiX",
    "PowerAvgPool1d",
    "PowerAvgPool2d",
    "PowerAvgPool3d",
    "S3Pool1d",
    "S3Pool2d",
    "S3Pool3d",
    "SimplifiedLogit",
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
    "SqueezeExcite",
    "StochasticPool1d",
    "StochasticPool2d",
    "StochasticPool3d",
    "create_pool",
    "create_squeeze",
    "fbs_penalty",
    "linear_density",
    "set_density",
    "translate_cbam",
]
