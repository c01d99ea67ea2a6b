"""Modules: parameters around one operator, no maths."""

from .channel_pool import ChannelPool
from .fbs import FBSConv2d, FBSSqueeze
from .lip_pool import BottleneckLogit, LIPPool1d, LIPPool2d, LIPPool3d, SimplifiedLogit
from .pix import PiX
from .power_pool import PowerAvgPool1d, PowerAvgPool2d, PowerAvgPool3d
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
    "BottleneckLogit",
    "ChannelPool",
    "ConvSqueeze",
    "FBSConv2d",
    "FBSSqueeze",
    "LIPPool1d",
    "LIPPool2d",
    "LIPPool3d",
    "PiX",
    "PowerAvgPool1d",
    "PowerAvgPool2d",
    "PowerAvgPool3d",
    "SimplifiedLogit",
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
    "StochasticPool1d",
    "StochasticPool2d",
    "StochasticPool3d",
    "create_squeeze",
]
