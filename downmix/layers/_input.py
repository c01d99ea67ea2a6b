"""What a layer takes: a number of channels, and maps of so many, with a batch dimension or without."""

from __future__ import annotations

import numbers

from torch import Tensor, fx, nn

from ..ops._define import check_floating

_SPACE = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def check_count(name: str, count: int) -> None:
    """Raises the sentence that says what is allowed where ``count``, of channels say, is no positive integer."""
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"{name} must be a positive integer, got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be a positive integer, got {count}")


def lacks_batch(layer: nn.Module, x: Tensor, channels: int, dims: int = 2) -> bool:
    """Whether ``x`` is [C, H, W] and not [B, C, H, W], or so in other ``dims``.

    Raises the sentence that says what the layer takes where it is neither, or of another number of channels.
    What runs it as a batch of one then is the class's forward, as ``layer.forward`` may be another one around that.
    """
    if isinstance(x, fx.Proxy):  # which has no shape, and stands for a batch
        return False
    check_floating("x", x)
    if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels:
        name, taken = type(layer).__name__, ", ".join([str(channels), *_SPACE[dims]])
        raise ValueError(f"{name} of {channels} channels takes [B, {taken}] or [{taken}], got {list(x.shape)}")
    return x.dim() == dims + 1
