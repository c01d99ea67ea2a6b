"""What a network does: functions that watch it and leave no trace."""

from .cam import METHODS, Attention, attend, last_map
from .probabilities import (
    LayerProbabilities,
    last_of_each_stage,
    measure_probabilities,
    pix_layers,
    watch_probabilities,
)
from .signal import PiXSignal, PoolSignal, pool_weights, signal_layers, trace_signal

__all__ = [
    "METHODS",
    "Attention",
    "LayerProbabilities",
    "PiXSignal",
    "PoolSignal",
    "attend",
    "last_map",
    "last_of_each_stage",
    "measure_probabilities",
    "pix_layers",
    "pool_weights",
    "signal_layers",
    "trace_signal",
    "watch_probabilities",
]
