"""The formulas of the PiX supplement, sections C to E: operations, and floats held, of layers and of whole modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ops import pix


def paper_operations(name: str, macs: int, args: Any, output: Any) -> int | None:
    """Operations of one of torch's operators by the source, None where it says nothing of such an operator.

    Args:
        name: of the operator, without namespace, overload and the underscore of an in-place one.
        macs: its multiply-adds; the source leaves biases out.
        args, output: its arguments and its result.
    """
    if name in ("convolution", "mm", "addmm"):
        return macs
    y = output[0] if isinstance(output, tuple | list) else output
    if name in _PER_ELEMENT:
        return _PER_ELEMENT[name] * y.numel()
    x: Any = args[0] if args else None
    if name in ("mean", "amax", "max"):  # CHW over space, (C − 1)HW over channels
        return x.numel() if y.shape[:2] == x.shape[:2] else x.numel() - y.numel()
    if name == "pick_or_mix":
        return pix.operations(x.shape, args[2], args[4], args[5])
    return None


_PER_ELEMENT = {
    "native_batch_norm": 4,
    "cudnn_batch_norm": 4,
    "relu": 1,
    "hardtanh": 1,  # ReLU6
    "sigmoid": 4,
    "mul": 1,
    "add": 1,
    "cat": 1,
}


def squeeze_operations(c: int, h: int, w: int, reduction: int) -> int:
    """The baseline, [1×1 convolution, BatchNorm, ReLU]: C²HW/r + 5(C/r)HW."""
    out = c // reduction
    return (c * out + 5 * out) * h * w


def pix_operations(c: int, h: int, w: int, reduction: int = 1, fusion: str = "threshold") -> int:
    """CHW + C²/r + 4C/r + ((r − 1)/r)CHW, the last term twice where fusion is weighted."""
    out = c // reduction
    return c * h * w + c * out + 4 * out + pix.operations((1, c, h, w), reduction, fusion)


def se_operations(c: int, h: int, w: int) -> int:
    """2CHW + 0.125C² + (65/16)C."""
    return 2 * c * h * w + c * c // 8 + 65 * c // 16


def cbam_operations(c: int, h: int, w: int) -> int:
    """6CHW + 0.125C² + (81/16)C + 6HW. The 7×7 convolution is in it as 2HW, where it takes 98HW."""
    return 6 * c * h * w + c * c // 8 + 81 * c // 16 + 6 * h * w


def fbs_operations(c: int, h: int, w: int) -> int:
    """7CHW + C² + 4C, without the top-k that the source's table leaves out too."""
    return 7 * c * h * w + c * c + 4 * c


def pix_floats(c: int, h: int, w: int, reduction: int = 1) -> int:
    """CHW + ((1 + r)/r)C."""
    return c * h * w + c + c // reduction


def se_floats(c: int, h: int, w: int) -> int:
    """CHW + (33/16)C."""
    return c * h * w + 33 * c // 16


def cbam_floats(c: int, h: int, w: int) -> int:
    """2CHW + 5HW + (65/16)C."""
    return 2 * c * h * w + 5 * h * w + 65 * c // 16


def fbs_floats(c: int, h: int, w: int) -> int:
    """2CHW + 2C."""
    return 2 * c * h * w + 2 * c


# Table 1 and figure 3 of the source, in its order: operations and floats held at [C, H, W].
MODULES: dict[str, tuple[Callable[[int, int, int], int], Callable[[int, int, int], int]]] = {
    "SE": (se_operations, se_floats),
    "CBAM": (cbam_operations, cbam_floats),
    "FBS": (fbs_operations, fbs_floats),
    "PiX": (pix_operations, pix_floats),
}
