"""Stochastic pooling: one value of each window, drawn in proportion to the values; their mean in evaluation.

Two operators, each with a stem for its kernels: `stochastic_pool`, the draw, and `stochastic_mean`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ._define import Operator, compute_dtype, memory_format, node_of
from ._windows import Size, call_batched, flop_formula, gather_windows, output_sizes, read_window


def stochastic_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    training: bool = False,
) -> Tensor:
    """Stochastic pooling over [B, C, L] or [C, L]. See :func:`stochastic_pool2d`.

    Example:
        >>> stochastic_pool1d(torch.tensor([[[1.0, 3.0, 0.0, 0.0]]]), 2)
        tensor([[[2.5000, 0.0000]]])
    """
    return _stochastic_pool_nd(1, training, x, kernel_size, stride, padding, dilation, ceil_mode)


def stochastic_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    training: bool = False,
) -> Tensor:
    r"""One value of each window, drawn with probability :math:`a_i / \sum_j a_j`; in evaluation their expected value.

    .. math:: y = a_i, \quad P(i) = \frac{a_i}{\sum_j a_j} \quad \text{in training}, \qquad
              y = \frac{\sum_i a_i^2}{\sum_i a_i} \quad \text{in evaluation}

    A window of zeros gives 0 and no gradient. In training the drawn value gets the gradient 1; in evaluation
    :math:`\partial y / \partial a_i = (2 a_i - y) / \sum_j a_j`, at 0 from the right.

    The draws come from torch's generator of the device: they repeat under ``torch.manual_seed``, differ from call to
    call and under ``torch.func.vmap(randomness="different")``, and differ between processes that are seeded apart.

    Values must not be negative. That is checked where it costs little, in plain calls on the CPU. Elsewhere (on a
    GPU, compiled, exported, in torch.func) negative values count as 0: the result is that of ``x.relu()``.

    Windows and output sizes are those of ``torch.nn.functional.max_pool2d``, whose arguments these are; padding never
    takes part. Finite for every finite input. NaN in a window gives NaN, otherwise inf gives inf. Half and bfloat16
    are computed in float32.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride, 0 or above. The result has its dtype, and is channels_last where it is.
        kernel_size (int or tuple): size of the window.
        stride (int or tuple): step between windows, ``kernel_size`` if None.
        padding (int or tuple): on both sides, at most half of the window.
        dilation (int or tuple): step between the elements of a window.
        ceil_mode (bool): whether a last window may reach beyond the padding.
        training (bool): whether values are drawn.

    Returns:
        Tensor[B, C, H', W'] or Tensor[C, H', W']

    Raises:
        TypeError: if ``x`` is no tensor of such a dtype, or a size no integer.
        ValueError: if a size is out of range, the windows don't fit ``x``, or ``x`` is seen to have negative values.

    Example:
        >>> stochastic_pool2d(torch.tensor([[[[1.0, 1.0], [2.0, 4.0]]]]), 2)
        tensor([[[[2.7500]]]])
        >>> stochastic_pool2d(torch.tensor([[[[0.0, 0.0], [0.0, 4.0]]]]), 2, training=True)
        tensor([[[[4.]]]])

    Source:
        Zeiler, Fergus, *Stochastic pooling for regularization of deep convolutional neural networks*, ICLR 2013,
        sections 3.1 and 3.2. Deviations: padding, dilation, ceil_mode, unbatched input and infinite values are ours.
    """
    return _stochastic_pool_nd(2, training, x, kernel_size, stride, padding, dilation, ceil_mode)


def stochastic_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    training: bool = False,
) -> Tensor:
    """Stochastic pooling over [B, C, D, H, W] or [C, D, H, W]. See :func:`stochastic_pool2d`."""
    return _stochastic_pool_nd(3, training, x, kernel_size, stride, padding, dilation, ceil_mode)


def _stochastic_pool_nd(n: int, training: bool, x: Tensor, *args: Any) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_stochastic_pool_nd, n, training, x, *args)
    window = read_window(n, x, *args)
    _check_not_negative(x)
    if not training:
        return call_batched(n, _stochastic_mean, [x], *window)
    shape = (*x.shape[:-n], *output_sizes(x.shape[-n:], *window))
    draws = torch.rand(shape, dtype=compute_dtype(x), device=x.device)
    return call_batched(n, _stochastic_pool, [x, draws], *window)


def _check_not_negative(x: Tensor) -> None:
    # A look at the values would wait for a GPU, and can't be traced or vmapped; a counting mode would count it.
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.numel() > 0
    if not plain or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if torch._C._len_torch_dispatch_stack() == 0 and (least := x.detach().amin().item()) < 0:
        raise ValueError(
            f"stochastic pooling needs values of 0 or above, as they are probabilities, got {least:.6g}; "
            "use it after a ReLU, or pass x.relu()"
        )


def _draw_reference(
    x: Tensor,
    draws: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    """Of each window the first value whose cumulative sum exceeds ``draws`` · total.

    ``draws``, of the output's shape, are uniform in [0, 1) and of x's dtype or wider; they have no gradient.
    """
    windows = gather_windows(_at_least_zero(x), 0.0, kernel_size, stride, padding, dilation, ceil_mode)
    top = windows.detach().amax(0)
    # Divided by the maximum, sums are at most K. A NaN is drawn if there is one, else inf if there is one.
    weights = windows.detach() / top.masked_fill(top == 0, 1.0)
    weights = torch.where(top.isfinite(), weights, ((windows == top) | windows.isnan()).to(weights.dtype))
    sums = weights.cumsum(0)
    # Sums grow, so counting those that were passed gives the first that was not. The total itself is never passed,
    # however `draws` is rounded; it is first reached at a value above 0.
    drawn = ((sums <= draws * sums[-1]) & (sums < sums[-1])).sum(0, keepdim=True)
    y = windows.gather(0, drawn).squeeze(0).masked_fill(top == 0, 0.0)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def _mean_reference(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    windows = gather_windows(_at_least_zero(x), 0.0, kernel_size, stride, padding, dilation, ceil_mode)
    top = windows.detach().amax(0)
    infinite = top.isinf()
    empty = (top == 0) | infinite
    # The mean of the weights is as many times smaller as its arguments, so its gradient may take top as a constant.
    weights = windows.masked_fill(infinite, 0.0) / top.masked_fill(empty, 1.0)
    mean = weights.square().sum(0) / weights.sum(0).masked_fill(empty, 1.0)
    y = torch.where(infinite, top, top.masked_fill(infinite, 0.0) * mean)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def _at_least_zero(x: Tensor) -> Tensor:
    wide = x.to(compute_dtype(x))
    return wide.masked_fill(wide < 0, 0.0)  # unlike clamp's, the gradient at 0 itself is 1


def draw_operations(output_shape: Sequence[int], kernel_size: Sequence[int]) -> dict[str, int]:
    """Element operations of a draw by kind. The random number is not counted; windows at the border count whole."""
    n, window = math.prod(output_shape), math.prod(kernel_size)
    return {
        "compare": n * (3 * window - 1),  # with 0, for the maximum, with the threshold
        "divide": n * window,
        "add": n * (window - 1),
        "multiply": n,
    }


def mean_operations(output_shape: Sequence[int], kernel_size: Sequence[int]) -> dict[str, int]:
    """Element operations in evaluation by kind. Windows at the border count whole."""
    n, window = math.prod(output_shape), math.prod(kernel_size)
    return {
        "compare": n * (2 * window - 1),  # with 0, and for the maximum
        "divide": n * (window + 1),
        "multiply": n * (window + 1),
        "add": n * 2 * (window - 1),
    }


_stochastic_pool = Operator(
    "stochastic_pool", _draw_reference, stem="stochastic_pool", operations=flop_formula(draw_operations, tensors=2)
)
_stochastic_mean = Operator(
    "stochastic_mean", _mean_reference, stem="stochastic_mean", operations=flop_formula(mean_operations)
)
