"""Networks for other runtimes: prepared so that they keep their speed, written, and run again."""

from .formats import DYNAMIC, FORMATS, write
from .quantise import float_nodes, quantise
from .regroup import Regrouped, regroup
from .runtimes import Exported, load

__all__ = ["DYNAMIC", "FORMATS", "Exported", "Regrouped", "float_nodes", "load", "quantise", "regroup", "write"]
