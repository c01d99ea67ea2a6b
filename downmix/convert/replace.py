"""What can take a layer's place, by its word, and how it moves in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..layers import AdaptiveSoftPool1d, AdaptiveSoftPool2d, AdaptiveSoftPool3d, PiX, pools
from ..layers import squeeze as squeezes
from ..layers._places import noted

Builder = Callable[[Any], nn.Module]

_ADAPTIVE_SOFT_POOLS = (AdaptiveSoftPool1d, AdaptiveSoftPool2d, AdaptiveSoftPool3d)
_ADAPTIVE = (
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
POOL_CLASSES = (*pools.POOLS["max"], *pools.POOLS["avg"], *_ADAPTIVE)
_EVEN_AND_ODD = (1024, 1025)  # at stride 2 these tell the sizes of all outputs


def _squeeze(word: str, conv: nn.Conv2d, channels: int | None) -> nn.Module:
    reduction = conv.in_channels // conv.out_channels
    if word == "conv":
        raise ValueError("is a convolution already, which squeeze='conv' stands for")
    if word == "pix":  # on meta, as the convolution's own weight and bias move in
        return PiX(conv.in_channels, reduction, bias=conv.bias is not None, device="meta")
    return squeezes.create_squeeze(word, conv.in_channels, reduction)


def _pool(word: str, pool: Any, channels: int | None) -> nn.Module:
    if is_adaptive(pool):
        if word != "soft":
            raise ValueError(f"is adaptive, which pool={word!r} can't be")
        return _ADAPTIVE_SOFT_POOLS[pool_dims(pool) - 1](pool.output_size)
    if isinstance(pool, pools.POOLS[word]):
        raise ValueError(f"is already {type(pool).__name__}, which pool={word!r} stands for")
    if word == "lip" and channels is None:
        raise ValueError("runs on maps of different numbers of channels, and the weights of lip are made for one")
    dilation = getattr(pool, "dilation", 1)  # average pools have none
    window = (pool.kernel_size, pool.stride, pool.padding, dilation, pool.ceil_mode)
    options = {"in_channels": channels} if word == "lip" else {}
    return pools.create_pool(word, *window, dims=pool_dims(pool), **options)


def _soft_pool_2x2(pool: Any, channels: int | None) -> nn.Module:
    if is_adaptive(pool) or set(sizes(pool.stride)) != {2}:
        raise ValueError("its stride is not 2, so windows of 2 side by side can't take its place")
    for ceil_mode in (False, True):
        new = pools.POOLS["soft"][pool_dims(pool) - 1](2, 2, ceil_mode=ceil_mode)
        if all(_output_shape(new, size) == _output_shape(pool, size) for size in _EVEN_AND_ODD):
            return new
    raise ValueError("gives maps of other sizes than windows of 2 side by side do, rounded down or up")


def _output_shape(pool: nn.Module, size: int) -> torch.Size:
    return pool.forward(torch.empty(1, 1, *[size] * pool_dims(pool), device="meta")).shape


# From the old layer, and the channels that go into it, to the new one; a ValueError leaves the old.
WordBuilder = Callable[[Any, int | None], nn.Module]
SQUEEZES: dict[str, WordBuilder] = {word: partial(_squeeze, word) for word in squeezes.SQUEEZES}
POOLS: dict[str, WordBuilder] = {word: partial(_pool, word) for word in pools.POOLS} | {"soft_2x2": _soft_pool_2x2}


def find_builder(argument: str, value: str | Builder) -> WordBuilder:
    """The function behind ``squeeze=value`` or ``pool=value``; a function of the old layer alone may be given too.

    Raises:
        ValueError: if the word is unknown; the sentence lists the known.
    """
    known = SQUEEZES if argument == "squeeze" else POOLS
    if callable(value):
        return lambda old, channels: value(old)
    if value not in known:
        words = ", ".join(map(repr, known))
        raise ValueError(f"{argument} must be one of {words}, a function from old layer to new, or None, got {value!r}")
    return known[value]


def build(builder: WordBuilder, old: nn.Module, channels: int | None, network: nn.Module) -> nn.Module:
    """The new layer, with the parameters of ``old`` that it has under the same name and shape.

    Args:
        builder: see :func:`find_builder`.
        old: the layer that goes.
        channels: that go into it, None if several numbers do.
        network: whose device and dtype the new layer gets where ``old`` has no parameters.
    """
    new = builder(old, channels)
    for name, parameter in old.named_parameters(recurse=False):
        ours = dict(new.named_parameters(recurse=False)).get(name)
        if ours is not None and ours.shape == parameter.shape:
            setattr(new, name, parameter)
    like = next((p for p in chain(old.parameters(), network.parameters()) if p.is_floating_point()), None)
    return new if like is None else new.to(like.device, like.dtype)


def put_in_place(network: nn.Module, name: str, new: nn.Module, drop: list[str]) -> None:
    """Swaps the layer ``name`` for ``new`` and those in ``drop`` for Identity; hooks, mode and notes move along."""
    for target, module in [(name, new), *((other, nn.Identity()) for other in drop)]:
        old = network.get_submodule(target)
        module.train(old.training)
        for hooks in _HOOKS:
            setattr(module, hooks, getattr(old, hooks))  # the dict itself, so that a hook's handle still removes it
        network.set_submodule(target, noted(old, module), strict=True)


def is_adaptive(pool: nn.Module) -> bool:
    return not hasattr(pool, "kernel_size")


def pool_dims(pool: nn.Module) -> int:
    names = (kind.__name__ for kind in type(pool).__mro__)  # a subclass may be called anything
    return next(int(name[-2]) for name in names if name[-2:] in ("1d", "2d", "3d"))  # as in MaxPool2d


def sizes(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
