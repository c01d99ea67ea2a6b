"""The network of a recipe: created, converted, and started from given weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import convert, convert_like
from ..models._networks import create_network
from .recipe import Recipe
from .weights import read_weights


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """The classifier that ``recipe`` asks for.

    Raises:
        ValueError: if a name, a conversion or the starting weights don't fit.
    """
    options: dict[str, Any] = {"drop_rate": recipe.drop, "drop_path_rate": recipe.drop_path}
    options = {name: value for name, value in options.items() if value}
    network = create_network(recipe.model, num_classes=num_classes, pretrained=recipe.pretrained, **options)
    network = convert_network(network, recipe)
    if recipe.init:
        start_from(network, Path(recipe.init))
    if recipe.grad_checkpointing:
        if not hasattr(network, "set_grad_checkpointing"):
            raise ValueError(f"{recipe.model} can't recompute activations; leave grad_checkpointing out")
        network.set_grad_checkpointing()  # type: ignore[operator]
    return network


def start_from(network: nn.Module, path: Path) -> None:
    """Loads weights from a checkpoint, all but a classifier of another size.

    Raises:
        ValueError: if anything else is missing, unexpected or of another shape.
    """
    state = read_weights(path)
    wanted = network.state_dict()
    head = _classifier_names(network)
    differing = {name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape}
    faults = sorted((wanted.keys() ^ state.keys() | differing) - {name for name in wanted if name.startswith(head)})
    if faults:
        raise ValueError(
            f"{path} does not fit {type(network).__name__}: {len(faults)} of its tensors are missing, unexpected or of "
            f"another shape, such as {', '.join(faults[:3])}"
        )
    fitting: dict[str, Tensor] = {name: value for name, value in state.items() if name not in differing}
    network.load_state_dict(fitting, strict=False)


def _classifier_names(network: nn.Module) -> tuple[str, ...]:
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def convert_network(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Replaces the layers of ``network`` that ``recipe`` wants replaced."""
    if recipe.convert:
        try:
            config = json.loads(Path(recipe.convert).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{recipe.convert} is no convert.json of `downmix convert` ({error})") from error
        return convert_like(network, config, inplace=True)
    if recipe.squeeze == recipe.pool == "none":
        return network
    network, _ = convert(
        network,
        squeeze=None if recipe.squeeze == "none" else recipe.squeeze,
        pool=None if recipe.pool == "none" else recipe.pool,
        example_input=torch.zeros(1, 3, recipe.image_size, recipe.image_size),
        inplace=True,
    )
    return network
