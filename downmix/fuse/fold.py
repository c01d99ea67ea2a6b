"""BatchNorm folded into the convolutions in front of it, as networks are deployed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from ..convert.trace import Step as Call
from ..convert.trace import Trace, is_norm, runs_as_torchs, trace
from ..layers._calls import is_hooked
from ..layers._modes import copy_network
from ..layers._places import names_of, noted
from .report import Step

Network = TypeVar("Network", bound=nn.Module)

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OTHER_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
# By name, as neither package need be there: frozen ones are no BatchNorms of torch, and timm's hold an activation.
_KNOWN = {("torchvision", "FrozenBatchNorm2d"), ("timm", "BatchNormAct2d"), ("timm", "FrozenBatchNormAct2d")}
# What an output may consist of besides tensors without holding one.
_PLAIN = (int, float, complex, str, type(None), torch.Size, torch.dtype, torch.device)


def fold_batch_norms(network: Network, images: Tensor) -> tuple[Network, list[Step]]:
    """A copy of ``network`` with each BatchNorm folded that is all that reads a convolution's output.

    timm's BatchNorm with an activation becomes that activation; frozen ones count. Which layer reads what is found by
    running the network. In one that can't run in float64, such as one with an autocast inside, whose forward asks a
    BatchNorm for more than its output, or that returns an object of a class of its own, all stay.

    Args:
        network: in evaluation mode.
        images (Tensor[B, C, H, W]): what it is run on.

    Returns:
        The copy, and what became of each BatchNorm.

    Raises:
        ValueError: if a norm is in training mode, or the copy gives another output. Both are computed in float64, so
            that rounding hides no mistake.
    """
    check_evaluation(network)
    # What runs in float64 is thrown away, as it may keep what it computed there, such as a table of biases.
    trial = copy_network(network).double()
    names = {
        module: known
        for module, known in names_of(trial).items()
        if isinstance(module, _BatchNorm) or (is_norm(module) and not isinstance(module, _OTHER_NORMS))
    }
    with torch.no_grad():
        try:
            before = run(trial, images.double())
        except Exception as error:  # a network may raise anything
            network(images)  # raises if it is the images
            return _all_stay(network, names, f"can't run in float64: {error}")
        if kind := hiding(before):
            return _all_stay(network, names, f"returns a {kind}, in which outputs can't be compared")
        found = trace(trial, (images.double(),))
        into = {norm: _folds_into(found, norm) for norm in names}
        folds = [(names[norm], conv.name) for norm, conv in into.items() if isinstance(conv, Call)]
        _fold(trial, folds)
        try:
            after = run(trial, images.double())
        except Exception as error:  # such as for a weight that is no more
            return _all_stay(network, names, f"can't run without its BatchNorms: {error}")
        check_same(before, after, "folding its BatchNorms")
        folded = copy_network(network)
        _fold(folded, folds)
    return folded, [Step(names[norm][0], conv if isinstance(conv, str) else "") for norm, conv in into.items()]


def _all_stay(network: Network, names: dict[nn.Module, list[str]], why: str) -> tuple[Network, list[Step]]:
    reason = " ".join(f"stands in a network that {why}".split())
    return copy_network(network), [Step(first, reason) for first, *_ in names.values()]


def run(network: Callable[[Tensor], Any], images: Tensor) -> list[Any]:
    """All outputs, of the same draws each time, for a network that draws in evaluation mode too."""
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        return tree_leaves(network(images))


def hiding(outputs: list[Any]) -> str:
    """The class of an output that may hold tensors unseen, such as a dataclass; empty if there is none."""
    return next((type(leaf).__name__ for leaf in outputs if not isinstance(leaf, (Tensor, *_PLAIN))), "")


def check_evaluation(network: nn.Module) -> None:
    """Raises a ValueError where a norm would take the statistics of the images, and keep them."""
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
            what = f"{name} ({type(module).__name__})" if name else "it"
            raise ValueError(f"a network for inference has no norm in training mode, but {what} is; call eval() before")


def _fold(network: nn.Module, folds: list[tuple[list[str], str]]) -> None:
    """Folds the norms of these names into the convolutions of these, which it changes, as they may have several."""
    for names, name in folds:
        norm: Any = network.get_submodule(names[0])
        conv: Any = network.get_submodule(name)
        old = conv.weight
        values = old, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
        doubled: Any = (None if value is None else value.double() for value in values)
        weight, bias, mean, variance, scale, shift = doubled
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
        conv.weight, conv.bias = (nn.Parameter(value.to(old.dtype), old.requires_grad) for value in fused)
        act: Any = noted(norm, getattr(norm, "act", nn.Identity()) if _is_known(norm) else nn.Identity())
        for place in names:
            network.set_submodule(place, act, strict=True)
        norm.forward = act.forward  # for a list that no module knows of


def check_same(before: list[Any], after: list[Any], change: str) -> None:
    """Raises a ValueError where outputs differ by more than rounding after a change."""
    for was, now in zip(before, after, strict=True):
        if not isinstance(was, Tensor) or not was.is_floating_point():
            continue
        finite = was[was.isfinite()].abs()
        size = finite.max().item() if len(finite) else 0.0
        if not torch.allclose(now, was, rtol=0, atol=torch.finfo(was.dtype).eps ** 0.5 * size, equal_nan=True):
            difference = (now - was).masked_fill(now == was, 0).abs().max().item()  # ∞ - ∞ is no number
            raise ValueError(f"{change} changed an output of up to {size:.3g} by {difference:.3g}")


def _folds_into(found: Trace, norm: Any) -> Call | str:
    """The convolution that takes a norm over, or why none does."""
    calls = found.calls.get(norm, [])
    if len(calls) != 1:
        return "runs more than once in a forward pass" if calls else "did not run on the example input"
    if not runs_as_torchs(norm) and not _is_known(norm):
        return f"is a {type(norm).__name__}, whose forward may differ from torch's"
    if is_hooked(norm):
        return "carries a forward hook"
    if norm.running_var is None:
        return "has no running statistics"
    conv = calls[0].sources[0] if len(calls[0].sources) == 1 else None
    if conv is None or conv.module is None or not isinstance(conv.module, _CONVS):
        return "does not read a convolution"
    # Its weight may be used otherwise, as timm's convolutions with standardised weights do.
    if not runs_as_torchs(conv.module):
        return f"reads a {type(conv.module).__name__}, whose forward may differ from torch's"
    if not {"weight", "bias"} <= conv.module._parameters.keys():
        return "reads a convolution with a weight that something else computes, such as weight_norm or pruning"
    if is_hooked(conv.module):
        return "reads a convolution that carries a forward hook"
    if len(found.calls[conv.module]) > 1 or len(conv.readers) > 1:
        return "reads a convolution that runs twice, or whose output something else reads as well"
    return conv


def _is_known(norm: nn.Module) -> bool:
    return (type(norm).__module__.partition(".")[0], type(norm).__name__) in _KNOWN
