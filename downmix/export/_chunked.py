"""PiX as inference runtimes like it: group i holds the i-th channel of each of r equal chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers import PiX
from ..layers._shared_passes import open_gate


class ChunkedPiX(nn.Module):
    """What :class:`downmix.PiX` computes of a map whose channels were regrouped, for inference.

    The maximum and the mean of groups are then element by element over slices of the map, for which a runtime leaves
    its blocked memory layout less often than for a reduction; the gate is a 1×1 convolution of the global mean, and
    the choice a sum of two products with factors that are zero or not, as selecting is slow in ONNX Runtime.

    Args:
        pix: the layer, whose ``in_channels`` its ``reduction`` divides; its weights are shared.
        channels: of the original map, in the order in which they stand now.
        groups: of the original layer, in the order in which outputs come out.
        gather: outputs to take in the end, where the network needs another order than ``groups``; None for all.

    Shape:
        [B, C, H, W] to [B, C / reduction, H, W].

    Source:
        As :func:`downmix.pick_or_mix`. Deviations: means are summed in another order; an infinite activation gives
        NaN, since its product with the factor zero is one.
    """

    gather: Tensor | None

    def __init__(self, pix: PiX, channels: Tensor, groups: Tensor, gather: Tensor | None):
        super().__init__()
        self.reduction, self.threshold, self.fusion = pix.reduction, pix.threshold, pix.fusion
        self.operator, self.gate = pix.operator, pix.gate
        weight, bias = _folded(pix)
        with torch.no_grad():
            self.weight = nn.Parameter(weight.index_select(0, groups).index_select(1, channels))
            self.bias = None if bias is None else nn.Parameter(bias.index_select(0, groups))
        self.register_buffer("gather", gather)

    def forward(self, x: Tensor) -> Tensor:
        logits = nn.functional.conv2d(x.mean((2, 3), keepdim=True), self.weight, self.bias)
        p = open_gate(self.gate, logits)
        y = self.fuse(x, p) if self.reduction > 1 else p * x if self.fusion == "threshold" else x
        return y if self.gather is None else y.index_select(1, self.gather)

    def fuse(self, x: Tensor, p: Tensor) -> Tensor:
        chunks, one = x.chunk(self.reduction, 1), 1 / self.reduction
        if self.operator != "max+avg":
            scale = p if self.fusion == "threshold" else torch.ones_like(p)
            return _reduce(self.operator, chunks) * (scale * one if self.operator == "avg" else scale)
        if self.fusion == "weighted":
            pick, mix = p, 1 - p
        else:
            pick = p * (p < self.threshold).to(p.dtype)
            mix = p - pick
        # The division of the mean is left to its factor, which has no pixels.
        return pick * _reduce("max", chunks) + (mix * one) * _reduce("avg", chunks)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, reduction={self.reduction}"


def _folded(pix: PiX) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear map and the BatchNorm behind it, in evaluation mode."""
    norm = pix.norm
    if norm is None:
        return pix.weight, pix.bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return fuse_conv_bn_weights(
        pix.weight, pix.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _reduce(operator: str, chunks: tuple[Tensor, ...]) -> Tensor:
    """The maximum, the minimum or the sum, element by element."""
    result = chunks[0]
    for chunk in chunks[1:]:
        if operator == "avg":
            result = result + chunk
        else:
            result = (torch.maximum if operator == "max" else torch.minimum)(result, chunk)
    return result
