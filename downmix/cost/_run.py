"""What it takes to run any network: images that it can process, evaluation mode for a while, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..layers._modes import modes, set_modes


def check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def first_floating(model: nn.Module) -> Tensor:
    """The first floating-point parameter or buffer: the network's inputs have its dtype and device."""
    return next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0))


def images(
    model: nn.Module, batch: int, input_size: tuple[int, int, int], make: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Noise, or what ``make`` makes, of the network's own dtype, on its device."""
    if batch < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch}")
    if not isinstance(input_size, Sequence) or min(input_size, default=0) < 1:
        raise ValueError(f"input_size must be positive sizes, such as (3, 224, 224), got {input_size}")
    like = first_floating(model)
    return make(batch, *input_size, device=like.device, dtype=like.dtype)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then gets back its own."""
    before = modes(model)
    try:
        model.eval()
        yield
    finally:
        set_modes(model, before)


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested containers, which any input or output of a module or an operator may be."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
