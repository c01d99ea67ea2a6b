"""Where the signal goes: which of a layer's inputs reach its output."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cost._run import first_floating
from ..layers import AdaptiveSoftPool2d, MixedPool2d, PiX, PowerAvgPool2d, S3Pool2d, SoftPool2d, StochasticPool2d
from ..layers.pools import POOLS
from ..ops import pix
from ..ops._windows import gather_windows, read_window
from ._watch import evaluating, find_layer, named_layers

_SOFT_POOLS = (SoftPool2d, AdaptiveSoftPool2d)
# Those whose gradient is their weights.
_PLAIN_POOLS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(MixedPool2d, PowerAvgPool2d, S3Pool2d),
)


@dataclass
class PiXSignal:
    """What a PiX layer made of one image. G output channels, each of r input channels.

    Attributes:
        p (Tensor[G]): probabilities.
        picks (Tensor[G]): whether the channel picks its maximum, or mixes.
        picked (Tensor[G, H, W]): which of the group's channels, 0 to r − 1, is the first maximum.
        maximum, mean (Tensor[G, H, W]): of the group.
        output (Tensor[G, H, W]): of the layer.
    """

    p: Tensor
    picks: Tensor
    picked: Tensor
    maximum: Tensor
    mean: Tensor
    output: Tensor


@dataclass
class PoolSignal:
    """What a pool made of one image.

    Attributes:
        input (Tensor[C, H, W]): of the pool.
        weights (Tensor[C, H, W]): how much each value counts; see :func:`pool_weights`.
        output (Tensor[C, H', W']): of the pool.
    """

    input: Tensor
    weights: Tensor
    output: Tensor


def trace_signal(model: nn.Module, name: str, image: Tensor) -> PiXSignal | PoolSignal:
    """What the layer called ``name`` makes of one image.

    Args:
        model: any network; it is evaluated, and is afterwards as it was.
        name: of a PiX layer or a pool that the network runs; see :func:`signal_layers`.
        image (Tensor[C, H, W]): as the network wants it.

    Raises:
        ValueError: if there is no such layer, it is neither, or it is not run.
    """
    layer = find_layer(model, name)
    if not _can_be_shown(layer):
        known = ", ".join(signal_layers(model)) or "none in this network"
        raise ValueError(f"{name} is a {type(layer).__name__}; a PiX layer or a pool can be shown: {known}")
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _, args, output: seen.append((args[0].clone(), _map(output).clone())))
    try:
        with evaluating(model):
            model(image[None].to(first_floating(model).device))
            if not seen:
                raise ValueError(f"the network did not run {name}; choose a layer that it does run")
            x, output = seen[0]
            if isinstance(layer, PiX):
                return _pix_signal(layer, x, output)
            return PoolSignal(x[0], pool_weights(layer, x)[0], output[0])
    finally:
        handle.remove()


def signal_layers(model: nn.Module) -> list[str]:
    """Names of the layers that :func:`trace_signal` can show."""
    return [name for name, layer in named_layers(model).items() if _can_be_shown(layer)]


def _can_be_shown(layer: nn.Module) -> bool:
    return isinstance(layer, (PiX, *_SOFT_POOLS, *POOLS["lip"], StochasticPool2d, *_PLAIN_POOLS))


def _pix_signal(layer: PiX, x: Tensor, output: Tensor) -> PiXSignal:
    p = layer.probabilities(x)
    ones, r = torch.ones_like(p), layer.reduction
    short = -x.shape[1] % r  # channels that the last group lacks
    groups = torch.cat([x, x.new_full((1, short, *x.shape[2:]), -torch.inf)], 1).unflatten(1, (-1, r))
    return PiXSignal(
        p[0],
        p[0].to(torch.promote_types(p.dtype, torch.float32)) < layer.threshold,
        groups.max(2).indices[0],
        pix.pick_or_mix(x, ones, r, operator="max", fusion="weighted")[0],
        pix.pick_or_mix(x, ones, r, operator="avg", fusion="weighted")[0],
        output[0],
    )


def pool_weights(pool: nn.Module, x: Tensor) -> Tensor:
    """How much each value of ``x`` counts in a pool's outputs: its weights, summed over the windows that hold it.

    An output is the sum of its window's values, each times its weight. The weights of a window add up to 1, but for
    those of the power average. Where windows don't overlap these are the windows' own. They are the gradient of the
    outputs' sum with the weights held constant: for SoftPool the one that its source computes, for LIP the one at fixed
    logits, for stochastic pooling the probabilities of the draw, for the others the plain one. Pools that draw are seen
    as in evaluation.

    Args:
        pool: SoftPool, LIP, the power average, stochastic, S3 or mixed pooling, or a max or average pool of torch.
        x (Tensor[B, C, H, W]): its input.

    Returns:
        Tensor[B, C, H, W]

    Example:
        >>> pool_weights(nn.AvgPool2d(2), torch.zeros(1, 1, 2, 2)).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    held: Any = copy.copy(pool)  # run without its hooks, which the copy shares
    if isinstance(pool, _SOFT_POOLS):
        held.gradient = "paper"
    held.training = False
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        if isinstance(pool, POOLS["lip"]):
            y = held.pool(leaf, held.logits(leaf).detach(), *held.window)
        elif isinstance(pool, StochasticPool2d):
            y = _expected(leaf, held)
        else:
            y = _map(held.forward(leaf))
        return torch.autograd.grad(y.sum(), leaf)[0]


def _map(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output  # without the indices of a pool that returns them


def _expected(x: Tensor, pool: StochasticPool2d) -> Tensor:
    """Mean of what is drawn, [B, C, H', W'], at fixed probabilities."""
    windows = gather_windows(x, 0.0, *read_window(2, x, *pool.window))  # [K, B, C, H', W']
    values = windows.detach()
    total = values.sum(0)
    return (windows * values).sum(0) / total.masked_fill(total == 0, 1.0)
