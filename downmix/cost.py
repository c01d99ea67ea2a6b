"""What a network costs: parameters, operations, and the activations it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import PiX


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        params: number of trainable values.
        conv_params: those in convolutions and in what takes their place (every weight of four dimensions).
        macs: operations by the convention of the papers' tables, see :func:`count_macs`.
        activation_bytes: memory that autograd keeps from the forward to the backward pass.
    """

    params: int
    conv_params: int
    macs: int
    activation_bytes: int


def measure_cost(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Cost:
    """Counts what one image of ``input_size`` (channels, height, width) costs; the network is left as it was."""
    return Cost(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        conv_params=sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() == 4),
        macs=count_macs(model, input_size),
        activation_bytes=count_activation_bytes(model, input_size),
    )


def count_macs(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Operations for one image by the convention of the papers' tables, ptflops' without functional operators.

    1 per multiply-add, 2 per BatchNorm element, 1 per ReLU element, 1 per input element of a pool (a PiX layer's global
    mean is one, its linear map counts as a convolution). Not counted: sums of branches and the PiX operator itself.

    Args:
        model: any module; it runs once on its own device, which may be ``meta``.
        input_size: channels, height and width of the image.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        total += _module_macs(module, inputs[0], output)

    handles = [module.register_forward_hook(add) for module in model.modules()]
    try:
        with _mode(model, training=False), torch.no_grad():
            model(_images(model, 1, input_size))
    finally:
        for handle in handles:
            handle.remove()
    return total


def count_activation_bytes(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Bytes that autograd keeps per image between the forward and the backward pass of a training step.

    Measured, not estimated: every storage that an operator saves counts once, parameters and buffers don't. Two images
    run and half is returned, as BatchNorm may need more than one.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    state = {key: value.clone() for key, value in model.state_dict().items()}  # training moves BatchNorm's statistics
    try:
        with _mode(model, training=True), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(_images(model, 2, input_size))
    finally:
        model.load_state_dict(state)
    for tensor in [*model.parameters(), *model.buffers()]:
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // 2


def _module_macs(module: nn.Module, x: Any, y: Any) -> int:
    for kinds, formula in _MACS.items():
        if isinstance(module, kinds):
            return formula(module, x, y)
    return 0


def _conv_macs(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * module.weight[0].numel() + (y.numel() if module.bias is not None else 0)


def _linear_macs(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * module.in_features + (y.numel() if module.bias is not None else 0)


def _batch_norm_macs(module: Any, x: Tensor, y: Tensor) -> int:
    return (2 if module.affine else 1) * x.numel()


def _pix_macs(module: Any, x: Tensor, y: Tensor) -> int:
    probabilities = y.shape[:-2].numel()
    return x.numel() + probabilities * module.in_channels + (probabilities if module.bias is not None else 0)


def _input_elements(module: nn.Module, x: Tensor, y: Tensor) -> int:
    return x.numel()


_MACS: dict[Any, Callable[[Any, Tensor, Tensor], int]] = {
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _conv_macs,
    nn.Linear: _linear_macs,
    nn.modules.batchnorm._BatchNorm: _batch_norm_macs,
    PiX: _pix_macs,
    (
        nn.ReLU,
        nn.ReLU6,
        nn.modules.pooling._AvgPoolNd,
        nn.modules.pooling._MaxPoolNd,
        nn.modules.pooling._AdaptiveAvgPoolNd,
        nn.modules.pooling._AdaptiveMaxPoolNd,
    ): _input_elements,
}


def _images(model: nn.Module, batch: int, input_size: tuple[int, int, int]) -> Tensor:
    like = next(model.parameters())
    return torch.randn(batch, *input_size, device=like.device, dtype=like.dtype)


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training
