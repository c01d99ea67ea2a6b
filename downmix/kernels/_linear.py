"""The gradients of a PiX layer's linear map, in torch's own operators."""

from __future__ import annotations

from torch import Tensor

from ..ops.add_relu_mean import whole


def gradients(logits: Tensor, mean: Tensor, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Those of the mean, [B, C], of the weight, and of the bias if there is one.

    Args:
        logits (Tensor[B, G]): their gradient.
        mean (Tensor[B, C]): or [B, parts, C], which add up to it.
        weight (Tensor[G, C, 1, 1]): W.
    """
    logits = logits.to(weight.dtype)
    dweight = logits.t() @ whole(mean, weight.dtype).to(weight.dtype)
    return logits @ weight.flatten(1), dweight.view_as(weight), logits.sum(0) if has_bias else None
