"""Weights alone, from whatever file holds them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import CheckpointError


def read_weights(path: Path, kind: str = "auto") -> dict[str, Tensor]:
    """The state dict in a checkpoint of ours, a plain file of ``torch.save``, or a safetensors file.

    Args:
        path: the file.
        kind: ``"model"`` for the weights themselves, ``"ema"`` for their moving average, ``"auto"`` for the average
            where there is one.

    Raises:
        CheckpointError: if it can't be read, reading it could run code, or it has not what is asked for.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        except SafetensorError as error:
            raise CheckpointError(f"{path} can't be read as safetensors; it may be cut off ({error})") from error
    state = _load(path)
    if kind == "ema" and not state.get("ema"):
        raise CheckpointError(f"{path} holds no moving average; ask for the weights of the model")
    if "model" in state:
        state = state["model"] if kind == "model" or not state.get("ema") else state["ema"]
    state = state.get("state_dict", state)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain values; reading it could run code") from error
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as a checkpoint; it may be cut off ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no weights by name")
    return state
