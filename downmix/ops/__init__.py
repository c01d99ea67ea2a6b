"""What is computed: a file an operator."""

from ._define import use_backend
from .pix import pick_or_mix

__all__ = ["pick_or_mix", "use_backend"]
