"""Weights alone, or with what their file says of the training that made them, and how they get into a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn

from .. import published
from ..layers import linear_density, set_density
from ..ops._define import check_choice
from .checkpoint import CheckpointError
from .recipe import Recipe
from .recipe_files import FIELDS

_AVERAGE = {"auto": None, "model": False, "ema": True}


class Trained(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: its tensors by name.
        recipe: by which `downmix train` made it; None where something else did.
        class_names: what its classes are called; empty where the file doesn't say, as those of earlier versions.
        density: share of channels that FBS layers kept in the epoch that the weights are of; 0 where none was set.
    """

    state: dict[str, Tensor]
    recipe: Recipe | None
    class_names: list[str]
    density: float


def read_trained(path: Path, kind: str = "auto") -> Trained:
    """Reads a checkpoint of ours or of the published code, a file of ``torch.save``, or safetensors, once.

    Args:
        path: the file.
        kind: ``"model"`` for the weights themselves, ``"ema"`` for their moving average, ``"auto"`` for the average
            where there is one. Safetensors hold one kind, whichever is asked for.

    Raises:
        CheckpointError: if it can't be read, reading it could run code, or it has not what is asked for.
    """
    check_choice("weights", kind, tuple(_AVERAGE))
    try:
        content = published.read_file(path)
        state = published.choose_weights(content, None if path.suffix == ".safetensors" else _AVERAGE[kind], path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        return _describe(content, state, path)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: what it says of its training can't be read ({error})") from error


def _describe(content: Any, state: dict[str, Tensor], path: Path) -> Trained:
    facts = content if isinstance(content, dict) else {}
    if path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as file:  # its head; the tensors are read already
            facts = file.metadata() or {}
        facts = {name: json.loads(facts[name]) for name in ("recipe", "class_names", "epoch") if name in facts}
    given = facts.get("recipe")
    if not isinstance(given, dict):  # or what another program calls so
        return Trained(state, None, [], 0.0)
    recipe = Recipe(**{name: value for name, value in given.items() if name in FIELDS})
    return Trained(state, recipe, list(facts.get("class_names", [])), _density(recipe, facts))


def _density(recipe: Recipe, facts: dict[str, Any]) -> float:
    if not recipe.fbs_density:
        return 0.0
    progress = facts.get("progress") or {"epoch": facts["epoch"], "step": 0}
    epoch = progress["epoch"] - (progress["step"] == 0)  # those that are done are counted, so the last is one less
    return linear_density(max(epoch, 0), recipe.fbs_epochs, recipe.fbs_density)


def start_from(network: nn.Module, state: dict[str, Tensor], path: Path, fresh: tuple[str, ...] = ()) -> None:
    """Loads tensors that come from ``path``, all but those of layers that begin anew.

    Args:
        fresh: what the names of tensors of ``network`` begin with that stay as they are where ``state`` has none of
            that name and shape.

    Raises:
        ValueError: if anything else is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    kept = {
        name: value
        for name, value in own.items()
        if name.startswith(fresh) and (name not in state or state[name].shape != value.shape)
    }
    published.load_state(network, state | kept, path)


def tensors_of(layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """What the names of tensors in ``layers`` begin with; a classifier is one layer to timm, several, or none."""
    return tuple(f"{name}." for name in ([layers] if isinstance(layers, str) else layers or ()))


def restore(network: nn.Module, trained: Trained, path: Path) -> None:
    """Makes ``network`` what it was when ``trained`` was written; ``path`` is where that was read.

    Raises:
        ValueError: if its tensors don't fit.
    """
    published.load_state(network, trained.state, path)
    if trained.density:
        set_density(network, trained.density)  # which no tensor says


def check_classes(before: Sequence[str], now: Sequence[str], path: Path) -> None:
    """Says the first class that ``path`` calls otherwise than the data, as nothing else tells that they are others.

    Args:
        before, now: names of the classes of ``path`` and of the data; numbers, as timm's sets without names get, and
            none at all fit any.

    Raises:
        CheckpointError: if there is one.
    """
    if any(list(names) == [str(label) for label in range(len(names))] for names in (before, now)):
        return
    for label, (old, new) in enumerate(zip_longest(before, now)):
        if old != new:
            old, new = ("nothing" if name is None else repr(name) for name in (old, new))
            raise CheckpointError(
                f"{path} calls class {label} {old}, these data {new}; give data with the same classes, named alike"
            )
