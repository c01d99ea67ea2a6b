"""Pictures of predictions: image, truth and prediction side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import ImageColor

from .checkpoint import write_whole
from .segmentation_data import VOID


def write_picture(
    path: Path,
    image: torch.Tensor,
    truth: torch.Tensor,
    prediction: torch.Tensor,
    class_names: Sequence[str],
    palette: np.ndarray,
) -> None:
    """Writes a PNG with an image, its true and its predicted classes, and a legend of those that occur.

    Args:
        path: of the PNG.
        image (uint8 Tensor[3, H, W]): colours.
        truth, prediction (int Tensor[H, W]): labels.
        class_names: in the order of the labels.
        palette (uint8 array[256, 3]): the colours of the labels, see :func:`create_palette`.
    """
    height, width = truth.shape
    figure = Figure(figsize=(15, 15 / 3 * height / width + 1.2), layout="constrained")
    right = (truth == prediction)[truth != VOID].float().mean().item()
    titles = ("image", "truth", f"prediction, {100 * right:.1f} % of the pixels right")
    panels = (image.permute(1, 2, 0).numpy(), palette[truth.numpy()], palette[prediction.numpy()])
    for axes, title, panel in zip(figure.subplots(1, 3), titles, panels, strict=True):
        axes.imshow(panel, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    names = dict(enumerate(class_names)) | {VOID: "void"}
    present = sorted(set(truth.unique().tolist()) | set(prediction.unique().tolist()))
    patches = [
        Patch(facecolor=tuple(palette[label] / 255), edgecolor="black", linewidth=0.5, label=names[label])
        for label in present
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=-(-len(patches) // 2), frameon=False)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100))


def create_palette(num_classes: int, colours: Sequence[str]) -> np.ndarray:
    """The colours (uint8 array[256, 3]) of all labels; black is void.

    Args:
        num_classes: how many there are.
        colours: of the classes, such as #804080; empty for hues all around.

    Raises:
        ValueError: if one is no colour.
    """
    palette = np.zeros((256, 3), np.uint8)
    around = [f"hsv({360 * i // num_classes}, {90 - i % 2 * 30}%, {95 - i // 2 % 2 * 30}%)" for i in range(num_classes)]
    for label, colour in enumerate(colours or around):
        try:
            palette[label] = ImageColor.getrgb(colour)[:3]
        except ValueError as error:
            raise ValueError(f"a class's colour must be written like #804080 or by a name, got {colour!r}") from error
    return palette
