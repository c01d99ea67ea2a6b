"""Power average pooling: the generalised mean of a window's absolute values."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ._define import Operator, compute_dtype, memory_format, node_of
from ._windows import Size, call_batched, count_values, flop_formula, gather_windows, read_window


def power_avg_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    norm_type: float = 2.0,
) -> Tensor:
    """Power average pooling over [B, C, L] or [C, L]. See :func:`power_avg_pool2d`.

    Example:
        >>> power_avg_pool1d(torch.tensor([[[1.0, -7.0, 0.0, 0.0]]]), 2)
        tensor([[[5., 0.]]])
    """
    return _power_avg_pool_nd(1, x, kernel_size, stride, padding, dilation, ceil_mode, norm_type)


def power_avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    norm_type: float = 2.0,
) -> Tensor:
    r"""Generalised means of windows; the same in training and evaluation.

    .. math:: y = \left(\frac{1}{n} \sum_i |a_i|^p\right)^{1/p}, \qquad
              \frac{\partial y}{\partial a_i} = \frac{\operatorname{sign}(a_i)}{n} \left(\frac{|a_i|}{y}\right)^{p - 1}

    over the n values of the window that lie in the map. The average of |a| for p = 1, near max |a| for large p.
    Windows and output sizes are those of ``torch.nn.functional.max_pool2d``, whose arguments these are. Finite for
    every finite input, as each window is divided by its own max |a| first. The gradient is 0 at values that are 0,
    also where it has no limit (in an all-zero window, and for p < 1). ±inf in a window gives inf and no gradient,
    NaN gives NaN. Half and bfloat16 are computed in float32.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride. The result has its dtype, and is channels_last where it is.
        kernel_size (int or tuple): size of the window.
        stride (int or tuple): step between windows, ``kernel_size`` if None.
        padding (int or tuple): on both sides, at most half of the window.
        dilation (int or tuple): step between the elements of a window; one that finds no value of the map gives 0.
        ceil_mode (bool): whether a last window may reach beyond the padding.
        norm_type (float): the power p, above 0.

    Returns:
        Tensor[B, C, H', W'] or Tensor[C, H', W']

    Raises:
        TypeError: if ``x`` is no tensor of such a dtype, a size no integer, or ``norm_type`` no number.
        ValueError: if a size or ``norm_type`` is out of range or the windows don't fit ``x``.

    Example:
        >>> power_avg_pool2d(torch.tensor([[[[1.0, 1.0], [5.0, 7.0]]]]), 2)
        tensor([[[[4.3589]]]])

    Source:
        Gulcehre, Cho, Pascanu, Bengio, *Learned-norm pooling for deep feedforward and recurrent neural networks*,
        ECML PKDD 2014, equation 1, without its learned p and centre. ``nn.LPPool2d`` is the sum in place of the
        mean, without the absolute value. Deviations: windows over a map, padding, dilation and ceil_mode.
    """
    return _power_avg_pool_nd(2, x, kernel_size, stride, padding, dilation, ceil_mode, norm_type)


def power_avg_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    norm_type: float = 2.0,
) -> Tensor:
    """Power average pooling over [B, C, D, H, W] or [C, D, H, W]. See :func:`power_avg_pool2d`."""
    return _power_avg_pool_nd(3, x, kernel_size, stride, padding, dilation, ceil_mode, norm_type)


def check_norm_type(norm_type: object) -> None:
    """Raises unless ``norm_type`` is a finite number above 0."""
    if isinstance(norm_type, bool) or not isinstance(norm_type, numbers.Real):
        raise TypeError(f"norm_type must be a number above 0, got {norm_type!r}")
    if not 0 < float(norm_type) < math.inf:
        raise ValueError(
            f"norm_type must be a finite number above 0, got {norm_type}; for its limit inf use nn.MaxPool on x.abs()"
        )


def _power_avg_pool_nd(n: int, x: Tensor, *args: Any) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_power_avg_pool_nd, n, x, *args)
    *window, norm_type = args
    check_norm_type(norm_type)
    return call_batched(n, _power_pool, [x], *read_window(n, x, *window), float(norm_type))


def _reference(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    norm_type: float,
) -> Tensor:
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    sizes = gather_windows(x.to(compute_dtype(x)).abs(), 0.0, *window)
    top = sizes.detach().amax(0)
    infinite = top.isinf()
    empty = (top == 0) | infinite
    # y does not depend on what sizes are divided by, so its gradient may take it as a constant.
    ratios = sizes.masked_fill(infinite, 0.0) / top.masked_fill(empty, 1.0)
    zero = ratios == 0
    powers = ratios.masked_fill(zero, 1.0).pow(norm_type).masked_fill(zero, 0.0)  # 0 has no gradient for p < 1
    mean = powers.sum(0).masked_fill(empty, 1.0) / count_values(x, *window)
    y = torch.where(infinite, top, top.masked_fill(infinite, 0.0) * mean.pow(1 / norm_type))
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def operations(output_shape: Sequence[int], kernel_size: Sequence[int]) -> dict[str, int]:
    """Element operations by kind. Windows at the border count whole."""
    n, window = math.prod(output_shape), math.prod(kernel_size)
    return {
        "compare": n * (2 * window - 1),  # absolute values, and the maximum
        "divide": n * (window + 1),
        "pow": n * (window + 1),
        "add": n * (window - 1),
        "multiply": n,
    }


_power_pool = Operator("power_pool", _reference, stem="power_pool", operations=flop_formula(operations))
