"""LIP, local importance pooling: the mean of a window, weighted by the softmax of logits that a network learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ._define import Operator, check_floating, compute_dtype, memory_format, node_of
from ._windows import Size, call_batched, flop_formula, gather_windows, read_window
from .soft_pool import operations


def lip_pool1d(
    x: Tensor,
    logits: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """LIP over [B, C, L] or [C, L]. See :func:`lip_pool2d`.

    Example:
        >>> lip_pool1d(torch.tensor([[[4.0, 8.0]]]), torch.tensor([[[0.0, 1.0986]]]), 2)  # weights 1/4 and 3/4
        tensor([[[7.0000]]])
    """
    return _lip_pool_nd(1, x, logits, kernel_size, stride, padding, dilation, ceil_mode)


def lip_pool2d(
    x: Tensor,
    logits: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    r"""Means of windows, weighted by the softmax of logits; with ``logits=x`` this is :func:`soft_pool2d`.

    .. math:: w_i = \frac{e^{l_i - m}}{\sum_j e^{l_j - m}}, \quad m = \max_j l_j, \qquad y = \sum_i w_i a_i

    Windows and output sizes are those of ``torch.nn.functional.max_pool2d``. Padding never takes part. Finite for every
    finite input. A value with logit −inf takes no part either, whatever it is; where logits are +inf, or all are −inf,
    those that are share the weight equally, and get no gradient. Where an infinite value takes part, y is that infinity
    (NaN for both signs) however small its weight, and no gradient flows. A window that holds no value, as dilation can
    make, gives NaN, and so does NaN. Half and bfloat16 are computed in float32.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride. The result has its dtype, and is channels_last where it is.
        logits (Tensor of x's shape): of any such dtype, the weights' logarithms up to a constant of each window.
        kernel_size (int or tuple): size of the window.
        stride (int or tuple): step between windows, ``kernel_size`` if None.
        padding (int or tuple): on both sides, at most half of the window.
        dilation (int or tuple): step between the elements of a window.
        ceil_mode (bool): whether a last window may reach beyond the padding.

    Returns:
        Tensor[B, C, H', W'] or Tensor[C, H', W']

    Raises:
        TypeError: if ``x`` or ``logits`` is no tensor of such a dtype, or a size no integer.
        ValueError: if the shapes or devices of ``x`` and ``logits`` differ, a size is out of range, or the windows
            don't fit.

    Example:
        >>> x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> lip_pool2d(x, torch.zeros_like(x), 2)
        tensor([[[[1.5000]]]])

    Source:
        Gao, Wang, Wu, *LIP: Local Importance-based Pooling*, ICCV 2019, section 3, and its published code. Deviations:
        the published quotient of two average pools overflows above logits of 88.7, this does not; sizes are
        ``max_pool2d``'s; dilation, ceil_mode, unbatched input, 1d, 3d and infinite values are ours.
    """
    return _lip_pool_nd(2, x, logits, kernel_size, stride, padding, dilation, ceil_mode)


def lip_pool3d(
    x: Tensor,
    logits: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """LIP over [B, C, D, H, W] or [C, D, H, W]. See :func:`lip_pool2d`."""
    return _lip_pool_nd(3, x, logits, kernel_size, stride, padding, dilation, ceil_mode)


def _lip_pool_nd(n: int, x: Tensor, logits: Tensor, *window: Any) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_lip_pool_nd, n, x, logits, *window)
    arguments = read_window(n, x, *window)
    check_floating("logits", logits)
    if logits.shape != x.shape:
        raise ValueError(
            f"logits must have the shape of x, {list(x.shape)}, one for each value, got {list(logits.shape)}; "
            "expand those that several values share"
        )
    if logits.device != x.device:  # whose memory a kernel would read as that of its own device
        raise ValueError(
            f"x and logits must be on one device, got x on {x.device} and logits on {logits.device}; move logits there"
        )
    return call_batched(n, _lip_pool, [x, logits], *arguments)


def _reference(
    x: Tensor,
    logits: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    dtype = compute_dtype(x, logits)
    values, logit = gather_windows(x.to(dtype), 0.0, *window), gather_windows(logits.to(dtype), -torch.inf, *window)
    top = logit.detach().amax(0)
    endless = top.isinf()
    # Infinite logits have no difference: the largest share the weight, but padding, which is −inf too, gets none.
    inside = gather_windows(logit.new_ones(1, 1, *x.shape[2:]), 0.0, *window) > 0
    logit = torch.where(endless, torch.where((logit == top) & inside, 0.0, -torch.inf), logit)
    left_out = logit == -torch.inf
    below = (logit - top.masked_fill(endless, 0.0)).masked_fill(left_out, 0.0)  # so that its gradient is 0
    weight = below.exp().masked_fill(left_out, 0.0)
    values = values.masked_fill(left_out, 0.0)
    infinite = values.isinf() & ~top.isnan()
    # Weights are divided first, so that no product exceeds the largest value.
    mean = (weight / weight.sum(0) * values.masked_fill(infinite, 0.0)).sum(0)
    infinity = values.detach().masked_fill(~infinite, 0.0).sum(0)
    y = mean.masked_fill(infinity != 0, 0.0) + infinity
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


_lip_pool = Operator("lip_pool", _reference, stem="lip_pool", operations=flop_formula(operations, tensors=2))
