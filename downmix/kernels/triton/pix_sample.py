"""A whole PiX layer on the GPU: three launches that are planned at once.

The mean, with a residual sum and ReLU in front of it; linear map and gate; fusion. For small batches, of which to ask
for a launch takes longer than the launch.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops._define import compute_dtype
from .._layouts import Layout, blank, layout, remembered, why_no_layer
from . import _common, _pix_linear, add_relu_mean, pix
from ._common import Launch, on_device_of

_MOST_PRODUCTS = 2**25  # of the linear map; beyond, samples should share a weight that is read, as torch's own do


def why_not(*args: Any) -> str | None:
    plan = _plan_for(*args)
    return plan if isinstance(plan, str) else None


def forward(
    x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor | None, slope: float, *rule: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`downmix.kernels.numba.pix_sample.forward`; the mean may come in parts that add up to it, [B, parts, C],
    and the probabilities are rounded as torch's own would be."""
    plan: Any = _plan_for(x, shortcut, weight, bias, slope, *rule)
    mean, p, y = (blank(output, x.device) for output in plan.outputs)
    with on_device_of(x):
        plan.sums.here(x, x if shortcut is None else shortcut, mean)
        plan.gates.here(mean, weight, weight if bias is None else bias, p)
        plan.fusion.here(x, p, y)
    return y, mean, p


class _Plan(NamedTuple):
    """The launches, and the layouts of what they write: mean, probabilities, output."""

    sums: Launch
    gates: Launch
    fusion: Launch
    outputs: tuple[Layout, Layout, Layout]


def _plan_for(
    x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor | None, slope: float, *rule: Any
) -> _Plan | str:
    device, kind = x.device, "cuda" if x.is_cuda else "cpu"  # the latter in Triton's interpreter
    for tensor in (weight, shortcut, bias):
        if tensor is not None and tensor.device != device:
            return f"the kernel of a layer takes maps and parameters on one device, got {device} and {tensor.device}"
    if x.is_cuda and (reason := _common.too_old(device)):
        return reason
    return _plan(
        layout(x),
        None if shortcut is None else layout(shortcut),
        layout(weight),
        None if bias is None else layout(bias),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        slope,
        *rule,
    )


@remembered
def _plan(
    x: Layout,
    shortcut: Layout | None,
    weight: Layout,
    bias: Layout | None,
    autocast: torch.dtype | None,
    slope: float,
    *rule: Any,
) -> _Plan | str:
    if reason := why_no_layer(x, shortcut, weight, bias, autocast is not None, rule[0]):
        return reason
    (batch, channels, *_), groups = x[0], weight[0][0]
    if batch * channels * groups > _MOST_PRODUCTS or 0 in x[0]:
        return "torch's own matrix product is faster for large batches"
    if reason := _common.why_not(x=blank(x), weight=blank(weight)):
        return reason
    mean, sums = add_relu_mean.forward_launch(x, shortcut, compute_dtype(blank(x)))
    kind = x[2] if autocast is None or x[2] == torch.float64 else autocast  # which leaves float64 alone
    gates = _pix_linear.forward_launch(mean, weight, bias is not None, slope, kind)
    if isinstance(gates, str):
        return gates
    p = (batch, groups), (groups, 1), kind
    y, fusion = pix.forward_launch((x, p), *rule)
    return _Plan(sums, gates, fusion, (mean, p, y))
