"""What a network does: functions that watch it and leave no trace."""

from .cam import METHODS, Attention, attend, last_map
from .probabilities import (
    LayerProbabilities,
    last_of_each_stage,
    measure_probabilities,
    pix_layers,
    watch_probabilities,
)

__all__ = [
    "METHODS",
    "Attention",
    "LayerProbabilities",
    "attend",
    "last_map",
    "last_of_each_stage",
    "measure_probabilities",
    "pix_layers",
    "watch_probabilities",
]
