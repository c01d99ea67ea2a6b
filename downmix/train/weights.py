"""Weights alone, from whatever file holds them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .. import published
from .checkpoint import CheckpointError

_AVERAGE = {"auto": None, "model": False, "ema": True}


def read_weights(path: Path, kind: str = "auto") -> dict[str, Tensor]:
    """The state dict in a checkpoint of ours or of the published code, a file of ``torch.save``, or safetensors.

    Args:
        path: the file.
        kind: ``"model"`` for the weights themselves, ``"ema"`` for their moving average, ``"auto"`` for the average
            where there is one. Safetensors hold one kind, whichever is asked for.

    Raises:
        CheckpointError: if it can't be read, reading it could run code, or it has not what is asked for.
    """
    try:
        return published.read_weights(path, ema=None if path.suffix == ".safetensors" else _AVERAGE[kind])
    except ValueError as error:
        raise CheckpointError(str(error)) from error
