"""Networks by their timm name."""

from __future__ import annotations

import ast
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

    Args:
        name: a network of timm, or with arguments of its own: ``NAME:key=value,key=value``.
        **kwargs: further arguments of it.

    Raises:
        ValueError: if timm knows no such network, or it refuses an argument.

    Example:
        >>> create_network("resnet26:base_width=32,layers=(1, 1, 1, 1)").layer4[0].conv2.in_channels
        256
    """
    name, options = read_name(name)
    kwargs = options | kwargs
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ";"
        raise ValueError(f"there is no network {name!r} in timm or downmix{hint} `downmix models` lists downmix's own")
    try:
        return timm.create_model(name, **kwargs)
    except (TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm can't build {name!r} with {kwargs}: {error}") from error


def own_input_size(name: str, network: nn.Module, option: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that ``network`` is made for, as timm's networks say.

    Raises:
        ValueError: if it does not say; the sentence asks for the command's ``option``.
    """
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    if "input_size" not in config:
        raise ValueError(f"{name} does not say which images it takes; pass {option}")
    return config["input_size"]


def read_name(name: str) -> tuple[str, dict[str, Any]]:
    """The name of a network and the arguments that stand behind it."""
    name, _, options = name.partition(":")
    return name, _read_options(name, options)


def _read_options(name: str, options: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"_({options})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("there is more than keys and their values")
        return {
            str(word.arg): word.value.id if isinstance(word.value, ast.Name) else ast.literal_eval(word.value)
            for word in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"the arguments of a network are written {name}:key=value,key=value, got {name}:{options}"
        ) from error
