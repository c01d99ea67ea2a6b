"""Modules: parameters around one operator, no maths."""

from .pix import PiX

__all__ = ["PiX"]
