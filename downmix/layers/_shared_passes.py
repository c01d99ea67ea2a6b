"""A PiX layer in training, and a residual sum in front of it, in as few passes over the map as can be.

Autograd gives a map that is read three times, by the mean, by the fusion and by a shortcut, three gradients and adds
them up; each is as large as the map. Here one pass writes their sum. And the pass that writes a map takes its mean.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops._define import differentiate
from ..ops._watching import beyond_kernels, for_autograd, plain, unwatched
from ..ops.add_relu_mean import add_relu_mean_, whole
from ..ops.pix import _pick_or_mix
from ._global_mean import global_mean

if TYPE_CHECKING:
    from .pix import PiX

_SLOPES = {"sigmoid": 1.0, "tanh": 2.0}  # a gate is the logistic function of so many times its logits


def may_share(*tensors: Tensor) -> bool:
    """Whether nobody but autograd needs to see each step: no tracer, compiler, mode or subclass of tensors."""
    return unwatched() and plain(tensors)


def squeeze(layer: PiX, x: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``layer(x)`` of a plain layer, and ``x`` for other readers, whose gradient joins that of the layer; where
    :func:`may_share`.

    With ``shortcut``, x becomes ReLU(x + shortcut) first, as in :func:`add_and_rectify`.
    """
    if shortcut is not None and _for_torch_alone(x):
        x, shortcut = add_and_rectify(x, shortcut), None
    inputs = _with_parameters(layer, x)
    if for_autograd(inputs if shortcut is None else (*inputs, shortcut)):
        return _PiX.apply(x, shortcut, layer.weight, layer.bias, layer)
    return _run(layer, x, shortcut)[0], x


def _run(layer: PiX, x: Tensor, shortcut: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the layer gives, the mean and the probabilities; ReLU(x + shortcut) is written over x."""
    rule = layer.rule
    if not torch.autograd._profiler_enabled():
        inputs = x, shortcut, layer.weight, layer.bias, _SLOPES[layer.gate], *rule
        kernel = _pick_or_mix.kernel(*inputs, stem="pix_sample")
        if not isinstance(kernel, str):
            _pick_or_mix._explain(kernel)
            if shortcut is not None and not x.is_inference():
                torch.autograd.graph.increment_version(x)
            return kernel.forward(*inputs)
    mean = x.mean((2, 3)) if shortcut is None and x.is_cpu else add_relu_mean_.run(x, shortcut)
    p = _defined(layer.gate, whole(mean, x.dtype), layer.weight, layer.bias)
    return _pick_or_mix.run(x, p, *rule), mean, p


def _defined(gate: str, mean: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """p by the definition of a plain layer."""
    return open_gate(gate, F.linear(mean, weight.flatten(1), bias))


def _with_parameters(layer: PiX, x: Tensor) -> tuple[Tensor, ...]:
    return (x, layer.weight) if layer.bias is None else (x, layer.weight, layer.bias)


def open_gate(gate: str, logits: Tensor) -> Tensor:
    """p of a PiX layer: the logistic function, or with ``"tanh"`` that of twice the logits."""
    return torch.sigmoid(logits) if gate == "sigmoid" else 0.5 * (1 + torch.tanh(logits))


def add_and_rectify(x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """ReLU(x + shortcut), written over ``x``; x itself where there is no shortcut."""
    if shortcut is None:
        return x
    if not for_autograd((x, shortcut)):
        return _write_sum(x, shortcut)
    return x.add_(shortcut).relu_() if _for_torch_alone(x) else _AddReLU.apply(x, shortcut)


def _write_sum(x: Tensor, shortcut: Tensor) -> Tensor:
    # On the CPU two passes take no longer than one that takes a mean nobody asked for.
    if not (x.is_cuda and plain((x, shortcut))):
        return x.add_(shortcut).relu_()
    add_relu_mean_.run(x, shortcut)
    return x


def _for_torch_alone(x: Tensor) -> bool:
    """Whether no function of our own may write over a map: a view, as some norms give, or one that retains its
    gradient."""
    return x._is_view() or x.retains_grad


class _AddReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor) -> Tensor:
        _write_sum(x, shortcut)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad = _before_relu(grads[0], *ctx.saved_tensors)
        return grad, grad


def _before_relu(grad: Tensor, y: Tensor) -> Tensor:
    """The gradient of what a ReLU made y of."""
    return torch.ops.aten.threshold_backward.default(grad, y, 0)


class _PiX(torch.autograd.Function):
    """A PiX layer of a map, or of what is ReLU(x + shortcut) then, and that map for other readers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor | None, layer: PiX
    ) -> tuple[Tensor, Tensor]:
        # As they are now; and what computes the gradient is to round as this does.
        ctx.rule, ctx.gate, ctx.autocast = layer.rule, layer.gate, _autocast(x.device.type)
        ctx.set_materialize_grads(False)
        ctx.rectified = shortcut is not None
        if shortcut is not None:
            ctx.mark_dirty(x)
        if not any(ctx.needs_input_grad[:2]):
            ctx.mark_non_differentiable(x)  # as the parameters have no part in it
        y, mean, p = _run(layer, x, shortcut)
        ctx.save_for_backward(x, mean, p, weight, bias)
        return y, x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, p, weight, bias = ctx.saved_tensors
        grad, other = grads
        if grad is None:
            grad = x.new_zeros(x.shape[0], p.shape[1], *x.shape[2:])
        kernel = _pick_or_mix.kernel(x, p, *ctx.rule, stem="pix_layer")
        given = [tensor for tensor in grads if tensor is not None]
        if isinstance(kernel, str) or beyond_kernels(*given) or not plain(given):

            def definition(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                with torch.autocast(*ctx.autocast) if ctx.autocast else nullcontext():
                    return _pick_or_mix(x, _defined(ctx.gate, global_mean(x), weight, bias), *ctx.rule)

            needed = [ctx.needs_input_grad[0] or ctx.needs_input_grad[1], *ctx.needs_input_grad[2:4]]
            dx, *others = differentiate(definition, (x, weight, bias), grad, needed)
            if dx is not None:
                dx = dx if other is None else dx + other
                dx = _before_relu(dx, x) if ctx.rectified else dx
            return dx, dx if ctx.rectified else None, *others, None
        dx, dw, db = kernel.backward(
            grad,
            x,
            p,
            *ctx.rule,
            slope=_SLOPES[ctx.gate],
            mean=mean,
            weight=weight,
            has_bias=bias is not None,
            other=other,
            rectified=ctx.rectified,
        )
        return dx, dx if ctx.rectified else None, dw, db, None


def _autocast(device: str) -> tuple[str, torch.dtype, bool] | None:
    """What makes :class:`torch.autocast` as it is now, or None where a device has none."""
    if not torch.amp.is_autocast_available(device):
        return None
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
