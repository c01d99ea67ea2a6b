"""Training and evaluation mode of each module of a network, and copies that keep them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def modes(network: nn.Module) -> dict[str, bool]:
    """Whether each module is in training mode, by its name."""
    return {name: module.training for name, module in network.named_modules()}


def set_modes(network: nn.Module, modes: Mapping[str, bool]) -> None:
    """Puts each module into its mode by its own ``train``, which may do more than set a flag.

    torchvision's feature extractors exchange their graphs in it, and LoRA's layers merge or part their weights.
    """
    for name, module in list(network.named_modules()):  # a module before those inside it
        if modes.get(name, module.training) != module.training:
            module.train(modes[name])


def copy_network(network: Network, otherwise: str = "") -> Network:
    """A copy with the modes of the original, which those of torchvision's feature extractors are without.

    Raises:
        ValueError: if it can't be copied; ``otherwise`` is what else may be done.
    """
    try:
        copied = copy.deepcopy(network)
    except TypeError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            f"{type(network).__name__} can't be copied, as it holds what Python can't copy ({error}); take that out of "
            f"it{otherwise}"
        ) from error
    except RuntimeError as error:
        if "deepcopy protocol" not in str(error):
            raise
        raise ValueError(
            f"{type(network).__name__} can't be copied, as it holds tensors that autograd follows, such as a weight "
            f"that prune or weight_norm computed; run it once under torch.no_grad(){otherwise}"
        ) from error
    set_modes(copied, modes(network))
    return copied
