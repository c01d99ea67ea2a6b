"""Mixed pooling: a sum of max and average pooling in a proportion that can be learned."""

from __future__ import annotations

import numbers
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ._define import compute_dtype, memory_format, node_of
from ._windows import Size, call_batched, count_values, gather_windows, read_window


def mixed_pool1d(
    x: Tensor,
    alpha: Tensor | float,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Mixed pooling over [B, C, L] or [C, L]. See :func:`mixed_pool2d`."""
    return _mixed_pool_nd(1, x, alpha, kernel_size, stride, padding, dilation, ceil_mode)


def mixed_pool2d(
    x: Tensor,
    alpha: Tensor | float,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    r"""A proportion of max and average pooling; the same in training and evaluation.

    .. math:: y = \alpha \max_i a_i + (1 - \alpha) \frac{1}{n} \sum_i a_i

    over the n values of the window that lie in the map. Windows and output sizes are those of
    ``torch.nn.functional.max_pool2d``, whose arguments these are. Half and bfloat16 are computed in float32.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride. The result has its dtype, and is channels_last where it is.
        alpha (Tensor or float): the proportion of the maximum, a single number; not bound to [0, 1].
        kernel_size (int or tuple): size of the window.
        stride (int or tuple): step between windows, ``kernel_size`` if None.
        padding (int or tuple): on both sides, at most half of the window.
        dilation (int or tuple): step between the elements of a window.
        ceil_mode (bool): whether a last window may reach beyond the padding.

    Returns:
        Tensor[B, C, H', W'] or Tensor[C, H', W']

    Raises:
        TypeError: if ``x`` is no tensor of such a dtype, a size no integer, or ``alpha`` no number.
        ValueError: if a size is out of range, the windows don't fit ``x``, or ``alpha`` holds more than one number.

    Example:
        >>> import torch
        >>> mixed_pool2d(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 0.5, 2)
        tensor([[[[4.5000]]]])

    Source:
        Lee, Gallagher, Tu, *Generalizing pooling functions in convolutional neural networks: mixed, gated, and tree*,
        AISTATS 2016, equation 1, one proportion a layer, unconstrained as there. Deviation: padding takes no part in
        the average.
    """
    return _mixed_pool_nd(2, x, alpha, kernel_size, stride, padding, dilation, ceil_mode)


def mixed_pool3d(
    x: Tensor,
    alpha: Tensor | float,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Mixed pooling over [B, C, D, H, W] or [C, D, H, W]. See :func:`mixed_pool2d`."""
    return _mixed_pool_nd(3, x, alpha, kernel_size, stride, padding, dilation, ceil_mode)


def _mixed_pool_nd(n: int, x: Tensor, alpha: Tensor | float, *args: Any) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_mixed_pool_nd, n, x, alpha, *args)
    window = read_window(n, x, *args)
    check_proportion(alpha)
    if isinstance(alpha, Tensor):
        # Without dimensions its dtype does not widen the map's, and 1 − α is not rounded to less than the arithmetic's.
        alpha = alpha.reshape(()).to(compute_dtype(x, alpha))
    y = call_batched(n, partial(_mix, alpha), [x.to(compute_dtype(x))], *window)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def check_proportion(alpha: Tensor | float) -> None:
    """Raises the sentence that says what is allowed where ``alpha`` is no single number."""
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1:
            raise ValueError(f"alpha must hold a single number, got a tensor of shape {list(alpha.shape)}")
        if alpha.is_complex() or alpha.dtype == torch.bool:
            raise TypeError(f"alpha must be a number or a tensor of one, got a tensor of {alpha.dtype}")
    elif isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise TypeError(f"alpha must be a number or a tensor of one, got {alpha!r}")


def _mix(
    alpha: Tensor | float,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    n, window = len(kernel_size), (kernel_size, stride, padding, dilation, ceil_mode)
    larger = n == 3 and any(k > size for k, size in zip(kernel_size, x.shape[2:], strict=True))
    if set(dilation) == {1} and not larger:
        top = getattr(F, f"max_pool{n}d")(x, *window)
        mean = getattr(F, f"avg_pool{n}d")(x, kernel_size, stride, padding, ceil_mode, count_include_pad=False)
    else:
        # Torch has no dilated average pooling, none in 3d of windows larger than the map, and its max_pool1d knows less
        # padding.
        top = gather_windows(x, -torch.inf, *window).max(0).values
        mean = gather_windows(x, 0.0, *window).sum(0) / count_values(x, *window)
    return alpha * top + (1 - alpha) * mean
