"""What this package needs beyond torch: loaded before all else in it, so that the error says what brings it."""

from .._extras import TRAINING, need

need("train", *TRAINING)
