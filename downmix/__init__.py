"""downmix: cheaper ConvNets that keep more of the signal where they shrink it."""

from ._version import __version__
from .convert import convert, convert_like
from .layers import (
    AdaptiveSoftPool1d,
    AdaptiveSoftPool2d,
    AdaptiveSoftPool3d,
    ChannelPool,
    ConvSqueeze,
    FBSConv2d,
    FBSSqueeze,
    PiX,
    SoftPool1d,
    SoftPool2d,
    SoftPool3d,
    create_squeeze,
)
from .ops import (
    adaptive_soft_pool,
    explain_backend,
    pick_or_mix,
    soft_pool1d,
    soft_pool2d,
    soft_pool3d,
    use_backend,
)
from .published import load_published

__all__ = [
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
    "__version__",
    "adaptive_soft_pool",
    "convert",
    "convert_like",
    "create_squeeze",
    "explain_backend",
    "load_published",
    "pick_or_mix",
    "soft_pool1d",
    "soft_pool2d",
    "soft_pool3d",
    "use_backend",
]
