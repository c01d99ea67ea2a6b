"""Who has to hear of a call of an operator, and so whether a kernel may run straight away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def exporting() -> bool:
    """Whether torch.export or torch.jit.trace is at work."""
    # Not torch.compiler.is_exporting(): Dynamo of torch 2.11 takes that for true in whatever it compiles.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def takes_plain_torch() -> bool:
    """Whether something is at work that takes torch's own operators only: exporters, whose graphs are to run without
    downmix, and torch.func and forward derivatives, which can't enter what is written for autograd."""
    return exporting() or transforming()


def transforming() -> bool:
    """Whether torch.func or forward derivatives are at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def watched(tensors: Sequence[Tensor]) -> bool:
    """Whether a mode, a profiler or a subclass of tensors has to hear of a call, or memory does not hold the values."""
    return _in_modes() or not plain(tensors) or torch.autograd._profiler_enabled()


def unwatched() -> bool:
    """Whether nobody but autograd and the profiler has to hear of calls: no compiler, exporter, transform or mode."""
    return not (torch.compiler.is_compiling() or takes_plain_torch() or _in_modes())


def _in_modes() -> bool:
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def plain(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor is of a subclass that has to hear of a call, and their memory holds their values: signs can be
    turned (`torch.imag` of a conjugate) and zeros left out."""
    for tensor in tensors:  # noqa: SIM110 - all() takes twice as long, and every call asks
        if type(tensor) not in _PLAIN or tensor.is_neg() or tensor._is_zerotensor():
            return False
    return True


def for_autograd(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd is to follow what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def beyond_kernels(*grads: Tensor) -> bool:
    """Whether a backward pass is to give gradients that have gradients themselves (create_graph=True), or is given a
    batch of them (is_grads_batched=True, torch.func.vmap)."""
    return torch.is_grad_enabled() or any(map(is_legacy_batchedtensor, grads)) or transforming()
