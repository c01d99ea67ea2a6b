"""SoftPool: the mean of a window, weighted by the softmax of its own values."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ._define import Operator, check_choice, check_floating, compute_dtype, memory_format, node_of
from ._watching import exporting
from ._windows import Size, call_batched, check_map, flop_formula, part_windows, read_window

GRADIENTS = ("exact", "paper")


def soft_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    gradient: str = "exact",
) -> Tensor:
    """SoftPool over [B, C, L] or [C, L]. See :func:`soft_pool2d`.

    Example:
        >>> soft_pool1d(torch.tensor([[[0.0, 0.0, 1.0, 3.0]]]), 2)
        tensor([[[0.0000, 2.7616]]])
    """
    return _soft_pool_nd(1, x, kernel_size, stride, padding, dilation, ceil_mode, gradient)


def soft_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    gradient: str = "exact",
) -> Tensor:
    r"""Means of windows, weighted by the softmax of their own values; the same in training and evaluation.

    .. math:: w_i = \frac{e^{a_i - m}}{\sum_j e^{a_j - m}}, \quad m = \max_j a_j, \qquad y = \sum_i w_i a_i

    Windows and output sizes are those of ``torch.nn.functional.max_pool2d``, whose arguments these are. Padding never
    takes part. Finite for every finite input. One +inf in a window gives +inf, −inf has weight 0, a window of −inf
    alone gives −inf, NaN gives NaN; no gradient flows where the maximum is infinite. Half and bfloat16 are computed
    in float32.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride. The result has its dtype, and is channels_last where it is.
        kernel_size (int or tuple): size of the window.
        stride (int or tuple): step between windows, ``kernel_size`` if None.
        padding (int or tuple): on both sides, at most half of the window.
        dilation (int or tuple): step between the elements of a window.
        ceil_mode (bool): whether a last window may reach beyond the padding.
        gradient (str): ``"exact"``, :math:`\partial y / \partial a_i = w_i (1 + a_i - y)`, or ``"paper"``,
            :math:`w_i`, the weights taken as constants.

    Returns:
        Tensor[B, C, H', W'] or Tensor[C, H', W']

    Raises:
        TypeError: if ``x`` is no tensor of such a dtype, or a size no integer.
        ValueError: if a size is out of range, the windows don't fit ``x``, or ``gradient`` is unknown.

    Example:
        >>> soft_pool2d(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), 2)
        tensor([[[[2.4927]]]])

    Source:
        Stergiou, Poppe, Kalliatakis, *Refining activation downsampling with SoftPool*, ICCV 2021, section 3.
        Deviations: the exact gradient is the default, the published CUDA code has the paper's; infinite values are
        defined, NaN is not masked; padding, dilation, ceil_mode and unbatched input are ours. The published Python
        fallback (average pools of x·eˣ and eˣ) overflows and is not followed.
    """
    return _soft_pool_nd(2, x, kernel_size, stride, padding, dilation, ceil_mode, gradient)


def soft_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    gradient: str = "exact",
) -> Tensor:
    """SoftPool over [B, C, D, H, W] or [C, D, H, W]. See :func:`soft_pool2d`."""
    return _soft_pool_nd(3, x, kernel_size, stride, padding, dilation, ceil_mode, gradient)


def adaptive_soft_pool(x: Tensor, output_size: int | Sequence[int | None], *, gradient: str = "exact") -> Tensor:
    """SoftPool with the windows of ``nn.AdaptiveMaxPool``: output i reads [floor(i·L / n), ceil((i + 1)·L / n)).

    Args:
        x (Tensor[B, C, *spatial] or Tensor[C, *spatial]): in the dtypes of :func:`soft_pool2d`, with 1 to 3 spatial
            dimensions, as many as ``output_size`` has.
        output_size (int or sequence): n for each spatial dimension; None keeps it, 1 everywhere pools globally. A
            single number, which does not say how many there are, takes ``x`` for [B, C, *spatial].
        gradient (str): as in :func:`soft_pool2d`.

    Returns:
        Tensor[B, C, *output_size] or Tensor[C, *output_size]

    Raises:
        TypeError: if ``x`` is no such tensor, or ``output_size`` neither a number nor a sequence.
        ValueError: if ``x`` has other dimensions or no pixels, an output size is no positive integer, or ``gradient``
            is unknown.

    Example:
        >>> adaptive_soft_pool(torch.tensor([[[0.0, 1.0, 3.0]]]), (2,))
        tensor([[[0.7311, 2.7616]]])
    """
    if isinstance(x, fx.Proxy):
        return node_of(adaptive_soft_pool, x, output_size, gradient=gradient)
    check_choice("gradient", gradient, GRADIENTS)
    check_floating("x", x)
    if isinstance(output_size, numbers.Integral):  # NumPy's too
        output_size = int(output_size)
    if isinstance(output_size, int | torch.SymInt):
        output_size = [output_size] * min(max(x.dim() - 2, 1), 3)  # check_map then says what x lacks
    if not isinstance(output_size, Sequence) or isinstance(output_size, str):
        raise TypeError(f"output_size must be an integer or a sequence of them, got {output_size!r}")
    n = len(output_size)
    if not 1 <= n <= 3:
        raise ValueError(f"output_size must have 1 to 3 sizes, one for each spatial dimension, got {output_size}")
    check_map(n, x)
    # A traced size is a tensor, and torch.jit.trace warns that its graph then holds for this size alone.
    sizes = [int(size) if isinstance(size, Tensor) else size for size in x.shape[-n:]]
    outputs = [size if out is None else out for size, out in zip(sizes, output_size, strict=True)]
    if any(not isinstance(out, numbers.Integral | torch.SymInt) or out < 1 for out in outputs) or 0 in sizes:
        raise ValueError(
            f"output_size needs positive integers or None and a non-empty map, got {output_size} for {sizes}"
        )
    outputs = [int(out) if isinstance(out, numbers.Integral) else out for out in outputs]
    symbolic = [isinstance(size, torch.SymInt) for size in sizes]
    if exporting() and any(sym and out not in (None, 1) for sym, out in zip(symbolic, output_size, strict=True)):
        raise ValueError(
            f"adaptive_soft_pool has windows of another length at each size, so that no graph of output_size="
            f"{tuple(output_size)} holds for all; export with a fixed size, or with an output_size of 1"
        )
    if all(size % out == 0 for size, out in zip(sizes, outputs, strict=True)):
        window = [size // out for size, out in zip(sizes, outputs, strict=True)]
        return _soft_pool_nd(n, x, window, None, 0, 1, False, gradient)
    if x.dim() == n + 1:
        return adaptive_soft_pool(x.unsqueeze(0), output_size, gradient=gradient).squeeze(0)
    # One spatial dimension at a time, and never more than six in all: in seven OpenVINO gives garbage.
    windows = x.to(compute_dtype(x)).flatten(0, 1).unsqueeze(0)  # [places, B · C, *spatial]
    for i in range(2, n + 2):
        index, valid = _adaptive_windows(sizes[i - 2], outputs[i - 2], x.device)  # [out, longest window]
        windows = windows.index_select(i, index.flatten()).unflatten(i, index.shape)
        windows = windows.masked_fill(~valid.reshape(*valid.shape, *[1] * (windows.dim() - i - 2)), -torch.inf)
        windows = torch.cat(windows.unbind(i + 1))  # a view would leave torch 2.11's exporter a guard on the batch size
    pooled = _softened([windows], gradient).to(x.dtype).unflatten(0, x.shape[:2])
    return pooled.contiguous(memory_format=memory_format(x))


def _adaptive_windows(size: int, out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    start = torch.arange(out, device=device) * size // out
    end = -(-torch.arange(1, out + 1, device=device) * size // out)
    longest = (size + 2 * out - 2) // out  # at most; a maximum over outputs would have torch.compile guard each
    index = start[:, None] + torch.arange(longest, device=device)
    return index.clamp(max=size - 1), index < end[:, None]


def _soft_pool_nd(n: int, x: Tensor, *args: Any) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_soft_pool_nd, n, x, *args)
    *window, gradient = args
    check_choice("gradient", gradient, GRADIENTS)
    return call_batched(n, _soft_pool, [x], *read_window(n, x, *window), gradient)


def _reference(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    gradient: str,
) -> Tensor:
    parts = part_windows(x.to(compute_dtype(x)), -torch.inf, kernel_size, stride, padding, dilation, ceil_mode)
    return _softened(parts, gradient).to(x.dtype).contiguous(memory_format=memory_format(x))


def _softened(parts: Sequence[Tensor], gradient: str) -> Tensor:
    """The weighted mean over the first dimension of all parts, where −inf stands for what takes no part."""
    top = functools.reduce(torch.maximum, [values.detach().amax(0) for values in parts])
    infinite = top.isinf()
    # a − m, cut off where its exponential vanishes, so that −∞ times weight 0 is 0; windows with m = ±∞ end below.
    vanishes = -746.0 if top.dtype == torch.float64 else -104.0
    means, weights = [], []
    for values in parts:
        below = values - top
        below = torch.where((below < vanishes) | infinite, vanishes, below)
        weight = below.detach().exp() if gradient == "paper" else below.exp()
        means.append((weight * below).sum(0))
        weights.append(weight.sum(0))
    mean = functools.reduce(torch.add, means) / functools.reduce(torch.add, weights)
    return top + mean.masked_fill(infinite, 0.0)


def operations(output_shape: Sequence[int], kernel_size: Sequence[int]) -> dict[str, int]:
    """Element operations by kind. Windows at the border count whole."""
    n, window = math.prod(output_shape), math.prod(kernel_size)
    return {
        "compare": n * (window - 1),
        "add": n * (3 * window - 2),  # differences, and two sums
        "exp": n * window,
        "multiply": n * window,
        "divide": n,
    }


_soft_pool = Operator("soft_pool", _reference, stem="soft_pool", operations=flop_formula(operations))
