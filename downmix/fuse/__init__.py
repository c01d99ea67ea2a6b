"""A network made ready for inference in PyTorch."""

from .fold import fold_batch_norms
from .fuse import fuse
from .report import Report, Step

__all__ = ["Report", "Step", "fold_batch_norms", "fuse"]
