"""Modules: parameters around one operator, no maths."""

from .pix import PiX
from .soft_pool import (
    AdaptiveSoftPool1d,
    AdaptiveSoftPool2d,
    AdaptiveSoftPool3d,
    SoftPool1d,
    SoftPool2d,
    SoftPool3d,
)

__all__ = [
    "AdaptiveSoftPool1d",
    "AdaptiveSoftPool2d",
    "AdaptiveSoftPool3d",
    "PiX",
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
]
