"""The places of layers in a network: their names, and what whatever takes a place has to know."""

from __future__ import annotations

import inspect
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)

_WINDOW = ("kernel_size", "stride", "padding", "dilation")


def names_of(network: nn.Module) -> dict[nn.Module, list[str]]:
    """Each module with all the names it has, in the order of the first."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def noted(old: nn.Module, new: Layer) -> Layer:
    """``new``, told what a network may ask ``old`` for beside its output, as far as it has no attribute of that name.

    That is what the network itself wrote there, as YOLO which layers each reads; and the window of a convolution, from
    which MobileNets that pad as TensorFlow does take the padding.
    """
    own: set[str] = set()
    for base in type(old).__mro__:
        own |= {*vars(base), *inspect.get_annotations(base), *vars(base).get("__constants__", ())}
    for name, value in vars(old).items():
        written = not name.startswith("_") and name not in own
        if (written or (name in _WINDOW and isinstance(old, nn.Conv2d))) and not hasattr(new, name):
            setattr(new, name, value)
    return new
