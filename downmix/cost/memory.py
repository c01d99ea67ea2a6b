"""The memory of activations: what a training step keeps, and the most that is alive at one time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers._modes import copy_network
from ._run import images, tensors_in


@torch.inference_mode(False)  # so with gradients, whatever the caller is at
def count_activation_bytes(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Bytes that autograd keeps per image between the forward and the backward pass of a training step.

    Measured, not estimated: every storage that an operator saves counts once, parameters and buffers don't. Two images
    run and half is returned, as BatchNorm may need more than one.

    Raises:
        ValueError: if the network can't be copied, or ``input_size`` is no positive sizes.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model = copy_network(model).train()  # training moves BatchNorm's statistics
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images(model, 2, input_size))
    for tensor in [*model.parameters(), *model.buffers()]:
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // 2


@torch.inference_mode(False)
def peak_memory_bytes(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    training: bool = False,
) -> int:
    """The most bytes of activations alive at one time, in eager inference or in a training step.

    Measured: a copy of the network runs on its own device, and every storage counts from its making to its end, the
    images among them; in training so do the gradients on their way back. The caller holds the images throughout, in
    training the network's output and its gradient too. Parameters, buffers and the parameters' gradients don't count,
    nor does what a kernel needs inside.

    Args:
        model: any module.
        input_size: channels, height and width of an image.
        batch_size: images at once. A training step runs two at least, as BatchNorm may need them, and is scaled.
        training: a forward and a backward pass, in place of a forward pass alone.

    Raises:
        ValueError: if ``batch_size`` is below 1, ``input_size`` no positive sizes, or the network can't be copied.
    """
    model = copy_network(model).train(training)
    batch = max(batch_size, 2) if training and batch_size > 0 else batch_size
    for parameter in model.parameters():
        parameter.grad = None
    log = _StorageLog([*model.parameters(), *model.buffers()])
    x = images(model, batch, input_size)
    log.watch(x)
    with torch.set_grad_enabled(training), log:
        output = model(x)
        if training:
            roots = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
            torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])
    log.ignore([p.grad for p in model.parameters() if p.grad is not None])
    return log.peak_bytes() * batch_size // batch


class _StorageLog(TorchDispatchMode):
    """Notes when each storage that an operator returns is made and when it ends."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self._numbers = weakref.WeakKeyDictionary[Any, int]()
        self._changes: list[tuple[int, int]] = []  # number of the storage, bytes more or less
        self._ignored: set[int] = set()
        for tensor in known:
            self.watch(tensor)
        self.ignore(known)

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self.watch(tensor)
        return output

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._numbers:
            return
        number = self._numbers[storage] = len(self._changes)
        self._changes.append((number, storage.nbytes()))
        weakref.finalize(storage, self._changes.append, (number, -storage.nbytes())).atexit = False

    def ignore(self, tensors: list[Tensor]) -> None:
        self._ignored |= {self._numbers[storage] for t in tensors if (storage := t.untyped_storage()) in self._numbers}

    def peak_bytes(self) -> int:
        now = peak = 0
        for number, change in list(self._changes):
            now += change if number not in self._ignored else 0
            peak = max(peak, now)
        return peak
