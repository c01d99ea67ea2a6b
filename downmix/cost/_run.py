"""Runs a network on images of noise, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def images(model: nn.Module, batch: int, input_size: tuple[int, int, int]) -> Tensor:
    """Noise of the network's own dtype, on its device."""
    like = next(model.parameters(), torch.empty(0))
    return torch.randn(batch, *input_size, device=like.device, dtype=like.dtype)


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
