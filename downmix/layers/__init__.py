"""Modules: parameters around one operator, no maths."""

from .channel_pool import ChannelPool
from .fbs import FBSConv2d, FBSSqueeze
from .mixed_pool import MixedPool1d, MixedPool2d, MixedPool3d
from .pix import PiX
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
from .stochastic_pool import StochasticPool1d, StochasticPool2d, StochasticPool3d

__all__ = [
    "AdaptiveSoftPool1d",
    "AdaptiveSoftPool2d",
    "AdaptiveSoftPool3d",
    "ChannelPool",
    "ConvSqueeze",
    "FBSConv2d",
    "FBSSqueeze",
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
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
    "StochasticPool1d",
    "StochasticPool2d",
    "StochasticPool3d",
    "create_squeeze",
]
