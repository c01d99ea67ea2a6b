"""What a network does: functions that watch it and leave no trace."""

from .probabilities import (
    LayerProbabilities,
    last_of_each_stage,
    measure_probabilities,
    pix_layers,
    watch_probabilities,
)

__all__ = [
    "LayerProbabilities",
    "last_of_each_stage",
    "measure_probabilities",
    "pix_layers",
    "watch_probabilities",
]
