"""Launches a pooling kernel on the CPU: windows of many outputs at once, whole rows in NCHW, many channels in
channels_last."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops._define import compute_dtype, memory_format
from .._layouts import layout
from . import _window_plan as plans
from ._launch import launch
from ._window_walker import Method


def forward(method: Method, x: Tensor, other: Tensor | None, window: Sequence[Any], parameter: float = 0.0) -> Tensor:
    """The output of a method.

    Args:
        method (Method): what happens within a window.
        x (Tensor): what is pooled.
        other (Tensor): the second tensor, as the method says, or None; one of values has x's shape and dtype.
        window (sequence): kernel_size, stride, padding, dilation and ceil_mode.
        parameter (float): a number for the method.
    """
    x, other = _readable(method, x, other)
    plan = plans.plan(method, layout(x), _constant(window), parameter)
    y = torch.empty(plan.shape, dtype=x.dtype, memory_format=plan.order)
    if y.numel():
        _run(plan, x, (x.data_ptr(), other.data_ptr()), (y.data_ptr(),))
    return y


def backward(
    method: Method, grad: Tensor, x: Tensor, other: Tensor | None, window: Sequence[Any], parameter: float = 0.0
) -> list[Tensor]:
    """The gradients of x and, if it holds values, of the other tensor; arguments as of `forward`."""
    second = [other] if other is not None and method.other == "values" else []
    gradients = [torch.empty_like(tensor) for tensor in (x, *second)]
    if grad.numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    x, other = _readable(method, x, other)
    plan = plans.gradient_plan(method, layout(x), _constant(window), parameter)
    grad = grad.contiguous(memory_format=plan.order)
    # A layout that the kernel can't write is copied to, as are sums that are wider.
    sums = [
        gradient
        if gradient.dtype == plan.dtype and gradient.is_contiguous(memory_format=plan.order)
        else torch.empty(x.shape, dtype=plan.dtype, memory_format=plan.order)
        for gradient in gradients
    ]
    _run(plan, x, (grad.data_ptr(), x.data_ptr(), other.data_ptr()), (sums[0].data_ptr(), sums[-1].data_ptr()))
    pairs = zip(gradients, sums, strict=True)
    return [gradient if total is gradient else gradient.copy_(total) for gradient, total in pairs]


def _run(plan: plans.Plan, x: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Launches the faster kernel, and the general one where that met values it can't take."""
    if not (plan.by_columns and _was_calm(plan, x, before, after)):
        launch(plan.kernel, plan.tasks, x.numel(), *before, *after, *plan.numbers)


def _was_calm(plan: plans.Plan, x: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Runs the kernel of `_column_sums`; whether all it met were values that it can take."""
    restless = ctypes.c_int64(0)
    launch(plan.calm_kernel, plan.tasks, x.numel(), *before, ctypes.addressof(restless), *after, *plan.numbers)
    return not restless.value


def _constant(window: Sequence[Any]) -> plans.Window:
    """The window as a key of what is remembered."""
    kernel_size, stride, padding, dilation, ceil_mode = window
    return tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), ceil_mode


def _readable(method: Method, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with strides that the kernels know: the same for values, the output's for outputs."""
    if not (plans.in_planes(x) or plans.in_pixels(x)):
        x = x.contiguous()
    if other is None:
        return x, x
    if method.other == "outputs":
        return x, other.to(compute_dtype(x)).contiguous(memory_format=memory_format(x))
    if other.stride() != x.stride():
        order = memory_format(x)
        x, other = x.contiguous(memory_format=order), other.contiguous(memory_format=order)
    return x, other
