"""BatchNorm folded into the convolutions in front of it, as networks are deployed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..convert.trace import Step, Trace, trace

# A subclass may use its weight otherwise, as timm's convolutions with standardised weights do.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


def fold_batch_norms(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``network`` with each BatchNorm folded that is all that reads a convolution's output.

    timm's BatchNorm with an activation becomes that activation. Which layer reads what is found by running the network.

    Args:
        network: in evaluation mode.
        images (Tensor[B, C, H, W]): what it is run on.

    Raises:
        ValueError: if the copy gives another output. Both are computed in float64, so that rounding hides no mistake.
    """
    like = next(network.parameters())
    images = images.double()
    copied = copy.deepcopy(network).double()
    with torch.no_grad():
        before = copied(images)
        found = trace(copied, (images,))
        for conv, norm in _pairs(found):
            copied.set_submodule(conv.name, fuse_conv_bn_eval(conv.module, norm.module), strict=True)  # type: ignore[arg-type]
            act: Any = norm.module.act if isinstance(norm.module, BatchNormAct2d) else nn.Identity()
            copied.set_submodule(norm.name, act, strict=True)
        after = copied(images)
    difference, size = (after - before).abs().max().item(), before.abs().max().item()
    if not difference <= torch.finfo(torch.float64).eps ** 0.5 * size:
        raise ValueError(f"folding its BatchNorms changed an output of up to {size:.3g} by {difference:.3g}")
    return copied.to(like.dtype)


def _pairs(found: Trace) -> list[tuple[Step, Step]]:
    """The convolutions and what is folded into them, each called once."""
    return [
        (conv, norm)
        for conv in found.steps
        if type(conv.module) in _CONVS and len(conv.readers) == 1
        for norm in conv.readers
        if type(norm.module) in _NORMS and isinstance(norm.module, _BatchNorm) and norm.module.running_var is not None
        if all(len(found.calls[step.module]) == 1 for step in (conv, norm) if step.module is not None)
    ]


def count_batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def settle_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Gives BatchNorms what training leaves: scales, shifts, and the statistics of ``images``.

    timm starts many with a scale of 0: what is in front of them adds nothing to the output, so a wrong fold would not
    show in it. Statistics of 0 and 1 would hide one too.
    """
    momentum = {}
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.reset_running_stats()
        momentum[norm], norm.momentum = norm.momentum, None  # None: the mean of all batches since the reset
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.1, 0.1)
    training = network.training
    with torch.no_grad():
        network.train()(images)
    network.train(training)
    for norm, value in momentum.items():
        norm.momentum = value
