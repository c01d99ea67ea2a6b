"""Convolutions on NVIDIA's GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def convolutions_by_time() -> Iterator[None]:
    """Lets cuDNN try its kernels on each new shape and keep the fastest, as timm's training does.

    What it keeps can differ from run to run, and so can the last digits: under
    ``torch.use_deterministic_algorithms`` it goes on choosing by rule.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
