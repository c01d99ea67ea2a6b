"""Pictures of predictions: image, truth and prediction side by side, with a legend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import ImageColor

from .segmentation_data import VOID

_VOID_COLOUR = "#000000"


def write_picture(
    path: Path, image: torch.Tensor, truth: torch.Tensor, prediction: torch.Tensor, colours: Mapping[str, str]
) -> None:
    """Writes a PNG with an image, its true and its predicted classes, and a legend of those that occur.

    Args:
        path: of the PNG.
        image (uint8 Tensor[3, H, W]): colours.
        truth, prediction (int Tensor[H, W]): labels; :data:`~.segmentation_data.VOID` is black.
        colours: of the classes, in the order of the labels.
    """
    palette = palette_of(colours)
    height, width = truth.shape
    figure = Figure(figsize=(15, 15 / 3 * height / width + 1.2), layout="constrained")
    right = (truth == prediction)[truth != VOID].float().mean().item()
    titles = ("image", "truth", f"prediction, {100 * right:.1f} % of the pixels right")
    panels = (image.permute(1, 2, 0).numpy(), palette[truth.numpy()], palette[prediction.numpy()])
    for axes, title, panel in zip(figure.subplots(1, 3), titles, panels, strict=True):
        axes.imshow(panel, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    present = set(truth.unique().tolist()) | set(prediction.unique().tolist())
    named = [(name, colour) for label, (name, colour) in enumerate(colours.items()) if label in present]
    named += [("void", _VOID_COLOUR)] if VOID in present else []
    patches = [Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name) for name, colour in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=-(-len(patches) // 2), frameon=False)
    figure.savefig(path, dpi=100)


def palette_of(colours: Mapping[str, str]) -> np.ndarray:
    """The colours (uint8 array[256, 3]) of all labels."""
    palette = np.zeros((256, 3), np.uint8)
    for label, (name, colour) in enumerate(colours.items()):
        try:
            palette[label] = ImageColor.getrgb(colour)[:3]
        except ValueError as error:
            raise ValueError(
                f"the colour of the class {name} must be like #804080 or a name, got {colour!r}"
            ) from error
    palette[VOID] = ImageColor.getrgb(_VOID_COLOUR)
    return palette
