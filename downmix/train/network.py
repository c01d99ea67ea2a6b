"""The network of a recipe: created, converted, and started from given weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..convert import convert_like
from ..models import join_stages
from ..models._networks import convert_by, create_network
from ..published import read_weights
from .recipe import Recipe
from .weights import start_from, tensors_of


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
        config: Any = getattr(network, "pretrained_cfg", None) or {}
        path = Path(recipe.init)
        start_from(network, read_weights(path), path, fresh=tensors_of(config.get("classifier")))
    if recipe.grad_checkpointing:
        recompute_activations(network, recipe)
    return network


def recompute_activations(network: Any, recipe: Recipe) -> None:
    """Lets a network of timm recompute activations.

    Raises:
        ValueError: if it can't.
    """
    try:
        network.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:  # some have the method to say that they can't
        raise ValueError(f"{recipe.model} can't recompute activations; leave grad_checkpointing out") from error


def convert_network(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Replaces the layers of ``network`` that ``recipe`` wants replaced.

    Raises:
        ValueError: if there are none.
    """
    config: Any = recipe.convert
    if config:
        network = convert_like(network, config, inplace=True)
        join_stages(network)
        return network
    size = (3, recipe.image_size, recipe.image_size)
    for kind, word in (("squeeze", recipe.squeeze), ("pool", recipe.pool)):
        if word != "none":
            network = convert_by(kind, word, network, recipe.model, size)
    return network
