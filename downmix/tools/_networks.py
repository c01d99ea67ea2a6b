"""Networks by their timm name."""

from __future__ import annotations

import difflib
import pkgutil
from typing import Any

import timm
from torch import nn

import downmix.models


def registered() -> list[str]:
    """The names that downmix adds to timm's registry."""
    modules = [module.name for module in pkgutil.iter_modules(downmix.models.__path__)]
    return sorted(name for module in modules for name in timm.list_models(module=module))


def create_network(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` that answers an unknown name with the nearest known ones.

    Raises:
        ValueError: if timm knows no such network, or it refuses an argument.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"there is no network {name!r} in timm or downmix{hint} `downmix models` lists downmix's own")
    try:
        return timm.create_model(name, **kwargs)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm can't build {name!r} with {kwargs}: {error}") from error
