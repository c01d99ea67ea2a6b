"""downmix: cheaper ConvNets that keep more of the signal where they shrink it."""

from ._version import __version__
from .layers import PiX
from .ops import pick_or_mix, use_backend

__all__ = ["PiX", "__version__", "pick_or_mix", "use_backend"]
