"""PSPNet over any of timm's encoders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

from ..models._networks import create_network, read_name
from ..published import read_weights
from .weights import start_from

_WINDOW_STEP = 2 / 3  # of the window, as PSPNet's published code slides it
_ENCODER = "network.encoder.model."
_LAST_LAYERS = "network.segmentation_head.0.", "auxiliary.4."


class Segmenter(nn.Module):
    """PSPNet with its auxiliary head.

    In training it gives the logits of both heads, in evaluation those of the main head, always at the images' own
    size: what the network's stride does not divide is filled up and cut off again.

    Args:
        network: segmentation_models_pytorch's PSPNet.
        num_classes: outputs a pixel.
        auxiliary: whether there is an auxiliary head, on the last but one stage of the encoder.
        window: height and width of the window that slides over the image in evaluation; None for the whole image.
        layers: the layer, counted from below, of each parameter of the classifier that the encoder is of.

    Source: Zhao et al., Pyramid Scene Parsing Network (CVPR 2017), and its published code (hszhao/semseg), for the
    auxiliary head, the loss and the window. segmentation_models_pytorch's network differs from theirs: the convolution
    after the pyramid is 1×1 and the last one 3×3, not the other way round; the pyramid's 1×1 bin has no BatchNorm; and
    the stem is timm's 7×7, where theirs has three 3×3.
    """

    def __init__(
        self,
        network: smp.PSPNet,
        num_classes: int,
        auxiliary: bool,
        window: tuple[int, int] | None,
        layers: dict[str, int],
    ):
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.auxiliary = _auxiliary_head(network.encoder.out_channels[-2], num_classes) if auxiliary else None
        self.window, self.layers = window, layers

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.training and self.auxiliary is not None:
            return self._both_heads(x, self.auxiliary)
        if self.training or self.window is None:
            return self._whole(x)
        return self._slide(x, self.window)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float]]:
        """The layer of a parameter, as timm asks for it to lower learning rates: the encoder's, then all else."""
        return lambda name: (_layer_of(name.removeprefix(_ENCODER), self.layers) if _ENCODER in name else math.inf,)

    def _both_heads(self, x: torch.Tensor, head: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = x.shape[2:]
        x = self._fill_up(x)
        features = self.network.encoder(x)
        main = self.network.segmentation_head(self.network.decoder(features))
        auxiliary = F.interpolate(head(features[-2]), x.shape[2:], mode="bilinear", align_corners=True)
        return main[..., :height, :width], auxiliary[..., :height, :width]

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self._fill_up(x))[..., : x.shape[2], : x.shape[3]]

    def _slide(self, x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
        """The logarithm of the mean of the probabilities of all windows that cover a pixel."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
        total = x.new_zeros(x.shape[0], self.num_classes, *x.shape[2:], dtype=torch.float32)
        count = torch.zeros_like(total[:1, :1])
        for top in _starts(x.shape[2], window[0]):
            for left in _starts(x.shape[3], window[1]):
                here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
                total[here] += self._whole(x[here]).float().softmax(1)
                count[here] += 1
        mean = (total / count)[..., :height, :width]
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _fill_up(self, x: torch.Tensor) -> torch.Tensor:
        stride = self.network.encoder.output_stride
        return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride))  # zero is the mean colour


def create_segmenter(
    encoder: str,
    num_classes: int,
    *,
    output_stride: int = 8,
    auxiliary: bool = True,
    window: tuple[int, int] | None = None,
    drop: float = 0.1,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> Segmenter:
    """PSPNet over an encoder by its name in timm, all five stages, the last ones dilated.

    Raises:
        ValueError: where timm has no such encoder, or it can't be dilated to this stride.
    """
    with torch.device("meta"):
        classifier = create_network(encoder)  # whose errors are sentences
    name, options = read_name(encoder)
    if drop_path:
        options["drop_path_rate"] = drop_path
    arguments: Any = {"encoder_depth": 5, "output_stride": output_stride, "upsampling": output_stride} | options
    try:
        network = smp.PSPNet(
            f"tu-{name}",
            encoder_weights=True if pretrained else None,  # type: ignore[arg-type]  # as smp documents it for tu-
            classes=num_classes,
            psp_dropout=drop,
            **arguments,
        )
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        reason = str(error) or "timm can't dilate it"
        raise ValueError(f"{encoder} can't be PSPNet's encoder with output_stride {output_stride}: {reason}") from error
    return Segmenter(network, num_classes, auxiliary, window, _layers_of(classifier))


def start_segmenter_from(model: Segmenter, path: Path) -> None:
    """Loads a segmentation's weights, but for last layers of other classes, or a classifier's into the encoder.

    Raises:
        ValueError: if anything else is missing, unexpected or of another shape.
    """
    state = read_weights(path)
    if any(name.startswith(_ENCODER) for name in state):
        start_from(model, state, path, fresh=_LAST_LAYERS)
        return
    encoder: Any = model.network.encoder.model
    own = tuple(f"{name}." for name, _ in encoder.named_children())
    given = {}  # without what a classifier has behind the encoder's last map
    for name, value in state.items():
        flat = re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", name)  # stages.0 in a classifier may be stages_0 here
        if (found := flat if flat.startswith(own) else name).startswith(own):
            given[found] = value
    start_from(encoder, given, path)


def _layers_of(classifier: nn.Module) -> dict[str, int]:
    """The layer, counted from below, of each parameter; empty where the network doesn't say."""
    matcher: Any = getattr(classifier, "group_matcher", None)
    return group_parameters(classifier, matcher(coarse=False), reverse=True) if matcher else {}


def _layer_of(name: str, layers: dict[str, int]) -> float:
    """The layer of a parameter of the encoder, or of what it lies in where a conversion has brought it."""
    name = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)  # an encoder calls stages_0 what is stages.0 in a classifier
    while name:
        if within := [layer for known, layer in layers.items() if f"{known}.".startswith(f"{name}.")]:
            return max(within)
        name = name.rpartition(".")[0]
    return math.inf


def _auxiliary_head(in_channels: int, num_classes: int) -> nn.Sequential:
    width = in_channels // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, num_classes, 1),
    )


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin, so that they overlap by a third and the last one ends at the end."""
    step = math.ceil(window * _WINDOW_STEP)
    return [*range(0, length - window, step), length - window]
