"""Counts of operations, by conventions that have names."""

from __future__ import annotations

from torch import nn

from ..ops._define import check_choice
from ._trace import trace

CONVENTIONS = ("ptflops", "paper", "macs")


def count_macs(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), convention: str = "ptflops") -> int:
    """Operations for one image, by one of three conventions; :func:`downmix.cost.profile` lists what each leaves out.

    - ``"ptflops"``: that of the papers' tables, ptflops' without functional operators. 1 per multiply-add, 2 per
      BatchNorm element, 1 per ReLU element, 1 per input element of a pool (a PiX layer's global mean is one, its
      linear map counts as a convolution). Not counted: sums of branches and the PiX operator itself.
    - ``"paper"``: the formulas of the PiX supplement, section C. 1 per multiply-add, 4 per BatchNorm or sigmoid
      element, 1 per element of a ReLU, a sum of branches or a global mean, and PiX's fusion.
    - ``"macs"``: multiply-adds of convolutions and matrix products, nothing else.

    Args:
        model: any module; it runs once on its own device, which may be ``meta``.
        input_size: channels, height and width of the image.
        convention: by which to count.

    Raises:
        ValueError: if there is no such convention.
        TypeError: if ``model`` is no module, or something in it is scripted or traced.
    """
    check_choice("convention", convention, CONVENTIONS)
    found = trace(model, input_size)
    if convention == "ptflops":
        return sum(found.ptflops.values())
    calls = [call for calls in found.calls.values() for call in calls]
    return sum(call.macs if convention == "macs" else call.paper or 0 for call in calls)
