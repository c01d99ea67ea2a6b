"""Networks by their timm name."""

from __future__ import annotations

import ast
import difflib
import pkgutil
import re
from typing import Any

import timm
import torch
from torch import nn

import downmix.models

from ..convert import convert
from ..cost._run import images

_VARIANT = re.compile(r"^(test_)?(pix|softpool|dwp|groupconv|fbs)_")


def registered() -> list[str]:
    """The names that downmix adds to timm's registry."""
    modules = [module.name for module in pkgutil.iter_modules(downmix.models.__path__)]
    return sorted(name for module in modules for name in timm.list_models(module=module))


def create_network(name: str, *, input_size: tuple[int, int, int] | None = None, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` that answers an unknown name with the nearest known ones, and converts what it made.

    Args:
        name: a network of timm, or with arguments of its own: ``NAME:key=value,key=value``. The keys ``pool`` and
            ``squeeze`` are the words of :func:`downmix.convert`, which is done after the network is built.
        input_size: channels, height and width of the images to convert with; the network's own if left out.
        **kwargs: further arguments of it.

    Raises:
        ValueError: if timm knows no such network, it refuses an argument, or a word replaces nothing.

    Example:
        >>> create_network("resnet26:base_width=32,layers=(1, 1, 1, 1)").layer4[0].conv2.in_channels
        256
        >>> create_network("vgg_small:pool=power").features[1]
        PowerAvgPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False, norm_type=2.0)
    """
    full = name
    name, options = read_name(full)
    kwargs = options | kwargs
    words = {kind: kwargs.pop(kind) for kind in ("pool", "squeeze") if kind in kwargs}
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ";"
        raise ValueError(f"there is no network {name!r} in timm or downmix{hint} `downmix models` lists downmix's own")
    try:
        network = timm.create_model(name, **kwargs)
    except (TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm can't build {name!r} with {kwargs}: {error}") from error
    for kind, word in words.items():
        network = convert_by(kind, word, network, full, input_size)
    return network


def convert_by(
    kind: str, word: Any, network: nn.Module, name: str, input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """Converts ``network``, which messages call ``name``, in place by a word of :func:`downmix.convert`.

    Args:
        kind: pool or squeeze.
        word: for that.
        input_size: as of :func:`create_network`.

    Raises:
        ValueError: if the word is unknown or replaces nothing.
    """
    size = input_size or own_input_size(name, network, "the size of the images")
    x = images(network, 1, size, torch.zeros)
    choice: dict[str, Any] = {"squeeze": None, "pool": None, kind: word}
    converted, report = convert(network, **choice, example_input=x, inplace=True)
    if not report.replaced:
        reasons = "; ".join(dict.fromkeys(f"{left.name} {left.reason}" for left in report.left)) or "it has none"
        raise ValueError(f"{name}: {kind}={word} replaces nothing: {reasons}")
    downmix.models.join_stages(converted)
    return converted


def own_input_size(name: str, network: nn.Module, option: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that ``network`` is made for, as timm's networks say.

    Raises:
        ValueError: if it does not say; the sentence asks for the command's ``option``.
    """
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    if "input_size" not in config:
        raise ValueError(f"{name} does not say which images it takes; pass {option}")
    return config["input_size"]


def baseline_of(name: str) -> str:
    """The network that another one is a variant of, as docs/models.md lists it.

    Raises:
        ValueError: if the name says none.

    Example:
        >>> baseline_of("pix_resnet50_down2"), baseline_of("fbs_vgg16_d25"), baseline_of("vgg_small:pool=soft")
        ('resnet50', 'vgg16_gap', 'vgg_small')
    """
    plain, options = read_name(name)
    if options and options.keys() <= {"pool", "squeeze"}:
        return plain
    stem = _VARIANT.sub(r"\1", plain)
    while stem and stem != plain:
        known = [candidate for candidate in (f"{stem}_gap", stem) if timm.is_model(candidate)]
        if known:
            return known[0]
        stem = stem.rpartition("_")[0]
    raise ValueError(f"the name {name} says of no other network that it is its baseline; name one")


def read_name(name: str) -> tuple[str, dict[str, Any]]:
    """The name of a network and the arguments that stand behind it.

    Raises:
        ValueError: if they can't be read.
    """
    name, _, options = name.partition(":")
    try:
        call = ast.parse(f"_({options})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("there is more than keys and their values")
        return name, {
            str(word.arg): word.value.id if isinstance(word.value, ast.Name) else ast.literal_eval(word.value)
            for word in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"the arguments of a network are written {name}:key=value,key=value, got {name}:{options}"
        ) from error
