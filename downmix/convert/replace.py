"""What can take a layer's place, by its word, and how it moves in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..layers import AdaptiveSoftPool1d, AdaptiveSoftPool2d, AdaptiveSoftPool3d, PiX, SoftPool1d, SoftPool2d, SoftPool3d

Builder = Callable[[Any], nn.Module]

_SOFT_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: SoftPool1d,
    nn.MaxPool2d: SoftPool2d,
    nn.MaxPool3d: SoftPool3d,
    nn.AvgPool1d: SoftPool1d,
    nn.AvgPool2d: SoftPool2d,
    nn.AvgPool3d: SoftPool3d,
    nn.AdaptiveMaxPool1d: AdaptiveSoftPool1d,
    nn.AdaptiveMaxPool2d: AdaptiveSoftPool2d,
    nn.AdaptiveMaxPool3d: AdaptiveSoftPool3d,
    nn.AdaptiveAvgPool1d: AdaptiveSoftPool1d,
    nn.AdaptiveAvgPool2d: AdaptiveSoftPool2d,
    nn.AdaptiveAvgPool3d: AdaptiveSoftPool3d,
}
POOL_CLASSES = tuple(_SOFT_POOLS)


def _pix(conv: nn.Conv2d) -> nn.Module:
    # On meta, as the convolution's own weight and bias move in.
    return PiX(conv.in_channels, conv.in_channels // conv.out_channels, bias=conv.bias is not None, device="meta")


def _soft_pool(pool: Any) -> nn.Module:
    ours: Any = _SOFT_POOLS[type(pool)]
    if is_adaptive(pool):
        return ours(pool.output_size)
    dilation = getattr(pool, "dilation", 1)  # average pools have none
    return ours(pool.kernel_size, pool.stride, pool.padding, dilation, ceil_mode=pool.ceil_mode)


def _soft_pool_2x2(pool: Any) -> nn.Module:
    ours: Any = _SOFT_POOLS[type(pool)]
    if is_adaptive(pool) or set(_sizes(pool.stride)) != {2}:
        raise ValueError("its stride is not 2, so windows of 2 side by side can't take its place")
    # Rounded up where the old windows reached into the padding: 3×3, stride 2, padding 1 gives ceil(H / 2).
    return ours(2, 2, ceil_mode=any(_sizes(pool.padding)))


SQUEEZES: dict[str, Builder] = {"pix": _pix}
POOLS: dict[str, Builder] = {"soft": _soft_pool, "soft_2x2": _soft_pool_2x2}


def find_builder(argument: str, value: str | Builder) -> Builder:
    """The function behind ``squeeze=value`` or ``pool=value``; a function is its own.

    Raises:
        ValueError: if the word is unknown; the sentence lists the known.
    """
    known = SQUEEZES if argument == "squeeze" else POOLS
    if callable(value):
        return value
    if value not in known:
        words = ", ".join(map(repr, known))
        raise ValueError(f"{argument} must be one of {words}, a function from old layer to new, or None, got {value!r}")
    return known[value]


def build(builder: Builder, old: nn.Module) -> nn.Module:
    """The new layer, with the parameters of ``old`` that it has under the same name and shape."""
    new = builder(old)
    for name, parameter in old.named_parameters(recurse=False):
        ours = dict(new.named_parameters(recurse=False)).get(name)
        if ours is not None and ours.shape == parameter.shape:
            setattr(new, name, parameter)
    like = next(old.parameters(), None)
    return new if like is None else new.to(like.device, like.dtype)


def put_in_place(network: nn.Module, name: str, new: nn.Module, drop: list[str]) -> None:
    """Swaps the layer ``name`` for ``new`` and those in ``drop`` for Identity; hooks and mode move along."""
    for target, module in [(name, new), *((other, nn.Identity()) for other in drop)]:
        old = network.get_submodule(target)
        module.train(old.training)
        for hooks in _HOOKS:
            setattr(module, hooks, getattr(old, hooks))  # the dict itself, so that a hook's handle still removes it
        network.set_submodule(target, module, strict=True)


def is_adaptive(pool: nn.Module) -> bool:
    return not hasattr(pool, "kernel_size")


def _sizes(value: Any) -> tuple[int, ...]:
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
