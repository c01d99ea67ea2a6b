"""The gradient of a whole PiX layer on the CPU: that of the fusion, to which the others are added in place."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...ops._define import compute_dtype
from . import pix
from .pix import why_not

__all__ = ["backward", "why_not"]


def backward(
    grad: Tensor,
    x: Tensor,
    p: Tensor,
    *constants: Any,
    slope: float,
    through_mean: Callable[[Tensor], Tensor],
    other: Tensor | None,
) -> Tensor:
    """As :func:`downmix.kernels.triton.pix_layer.backward`."""
    p = p.to(compute_dtype(x, p))
    dx, dp = pix.backward(grad, x, p, *constants)
    dx += (through_mean(dp * (slope * p * (1 - p))) / x.shape[2:].numel())[:, :, None, None]
    if other is not None:
        dx += other
    return dx
