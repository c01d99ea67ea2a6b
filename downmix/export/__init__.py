"""Networks for other runtimes: prepared so that they keep their speed, written, and run again."""

from .regroup import Regrouped, regroup

__all__ = ["Regrouped", "regroup"]
