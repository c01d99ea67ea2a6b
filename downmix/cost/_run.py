"""What it takes to run any network: images that it can process, and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


def first_floating(model: nn.Module) -> Tensor:
    """The first floating-point parameter or buffer: the network's inputs have its dtype and device."""
    return next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0))


def images(
    model: nn.Module, batch: int, input_size: tuple[int, int, int], make: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Noise, or what ``make`` makes, of the network's own dtype, on its device."""
    like = first_floating(model)
    return make(batch, *input_size, device=like.device, dtype=like.dtype)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then gets back its own."""
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training
