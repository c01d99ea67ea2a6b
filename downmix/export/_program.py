"""A network as a program of torch.export, or a sentence that says why it is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def check_arguments(verb: str, network: object, images: object) -> None:
    """Raises a sentence unless ``network`` is one for inference and ``images`` a tensor; ``verb`` says what for."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"{verb} takes a network, an nn.Module, got {type(network).__name__}")
    if not isinstance(images, Tensor):
        raise TypeError(f"{verb} takes one batch of images, a tensor, got {type(images).__name__}")
    if network.training:
        raise ValueError(f"{verb} takes a network for inference; call network.eval() before")


def trace_program(network: nn.Module, images: Tensor, dynamic_shapes: Any = None) -> torch.export.ExportedProgram:
    """What ``network`` computes of ``images``, operator by operator.

    Raises:
        ValueError: if torch.export can't follow the forward, or the network can't run on ``images``.
    """
    with torch.no_grad():
        try:
            return torch.export.export(network, (images,), dynamic_shapes=dynamic_shapes)
        except Exception as error:  # a forward may do anything
            reason = " ".join(str(error).split("\n\n")[0].split()).rstrip(".") or type(error).__name__
            raise ValueError(
                f"torch.export can't trace {type(network).__name__} on images of {list(images.shape)}: {reason}. It "
                "needs a forward that takes such images, doesn't decide by the values of a tensor, and computes in "
                "torch alone; pass other images, or the part of the network that is so"
            ) from error
