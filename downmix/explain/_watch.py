"""How a network is watched without leaving a trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ..cost._run import check_module, evaluation


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without what ``torch.compile``, DDP and DataParallel put around it."""
    check_module(model)
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the network itself by its name, also where ``torch.compile`` wrapped a part of it."""
    return {
        name.replace("_orig_mod.", ""): module
        for name, module in unwrapped(model).named_modules()
        if not name.endswith("_orig_mod")
    }


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module called ``name``; ValueError with near names where there is none."""
    layers = named_layers(model)
    if name not in layers:
        near = difflib.get_close_matches(name, layers, n=4, cutoff=0.4) or list(layers)[1:5]
        raise ValueError(f"the network has no layer {name!r}; near it are {', '.join(near)}")
    return layers[name]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every module is in the mode it was in."""
    with evaluation(model), torch.no_grad(), uncompiled():
        yield


def uncompiled() -> AbstractContextManager[Any]:
    """A context in which compiled code runs eagerly; afterwards it runs as compiled before.

    What was traced without hooks does not call them, and what is traced with them calls them for good.
    """
    return torch.compiler.set_stance("force_eager")
