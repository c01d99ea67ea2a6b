"""Makes a network ready for inference in PyTorch."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from ..convert.convert import check_network
from ..cost._run import first_floating
from ..ops import explain_backend
from .fold import check_evaluation, fold_batch_norms
from .means import join_means
from .report import Report, Step


def fuse(model: nn.Module, *, example_input: Tensor | None = None) -> tuple[nn.Module, Report]:
    """A copy of a network that computes the same faster, for inference, and a report of what was done.

    BatchNorms are folded into the convolutions in front of them. Weights of four dimensions are put into channels_last,
    which maps then are in, too, unless the forward can't take those, as a ``view`` can't. Where a PiX layer reads the
    ReLU of a residual sum, it adds and rectifies in the pass that takes its mean; the copy then is a
    :class:`torch.fx.GraphModule`, whose layers have the network's names. Last it runs once, which compiles the kernels
    that such images take. Outputs are the same up to rounding. Parameters of the copy need no gradients.

    Args:
        model: in evaluation mode; stays as it is.
        example_input (Tensor[B, C, H, W]): images that it can process; None takes noise of 3×224×224.

    Returns:
        The copy and a :class:`downmix.fuse.Report`.

    Raises:
        ValueError: if the network or a norm in it is in training mode, has weights on the meta device, or can't run on
            ``example_input``.
        TypeError: if ``model`` is no module, or is scripted or compiled, or ``example_input`` is no tensor.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fused, report = fuse(network)
        >>> fused[:2]
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )
        >>> report.norms
        [Step(name='1', why_not='')]
    """
    check_network(model, "fuse")
    if model.training:
        raise ValueError("fuse makes a network for inference; call model.eval() before")
    check_evaluation(model)
    if any(value.is_meta for value in chain(model.parameters(), model.buffers())):
        raise ValueError("fuse computes with a network's weights, but some are on the meta device; load them before")
    if not isinstance(example_input, Tensor | None):
        raise TypeError(
            f"example_input must be one batch of images, a tensor, got {type(example_input).__name__}; of a network "
            "that takes anything else, fuse the part that takes images alone, such as its backbone"
        )
    if example_input is None:
        noise = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        example_input = noise.to(first_floating(model))
    with torch.no_grad():
        try:
            model(example_input)
        except Exception as error:  # a network may raise anything
            shape, name = list(example_input.shape), type(model).__name__
            raise ValueError(f"{name} can't run on {shape}; pass another example_input ({error})") from error
        folded, norms = fold_batch_norms(model, example_input)
        weights = _put_channels_last(folded.requires_grad_(False), example_input)
        fused, means = join_means(folded, example_input)
        backends = explain_backend(fused, example_input)
    return fused, Report(type(model).__name__, norms, weights, means, backends.splitlines())


def _put_channels_last(network: nn.Module, images: Tensor) -> Step:
    before = [(value, value.data) for value in chain(network.parameters(), network.buffers()) if value.dim() == 4]
    for value, data in before:
        value.data = data.to(memory_format=torch.channels_last)
    try:
        network(images)
    except Exception as error:  # a network may raise anything
        for value, data in before:
            value.data = data
        return Step("weights", f"stay as they were, as the forward can't run in channels_last: {error}")
    return Step("weights")
