"""Pictures: read from any file into [0, 1], written, and drawn side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from ..train.images import UNREADABLE
from ..train.writable import check_file

_GAP, _TITLE, _SIDE, _DPI = 16, 40, 320, 100  # pixels; the last per inch


def read_picture(path: Path) -> Tensor:
    """Reads a file of any kind that Pillow knows, turned upright, transparent parts on white; the first of many frames.

    Returns:
        Tensor[C, H, W]: the file's values, linearly from black 0 to white 1; C is 1 for greyscale and 3 otherwise.

    Raises:
        ValueError: if there is no such file, or it can't be read.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path of a picture")
    try:
        with Image.open(path) as image:
            values = _values(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} can't be read as a picture: {reason}; save it anew as PNG or JPEG") from error
    return torch.from_numpy(values).movedim(2, 0).contiguous()


def read_rgb(path: Path) -> Image.Image:
    """What :func:`read_picture` reads as networks take it: RGB, 8 bits a value."""
    return Image.fromarray(_bytes(read_picture(path))).convert("RGB")


def _values(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)[:, :, None] / (1 if image.mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"its values, from {values.min():g} to {values.max():g} of white, are no grey levels")
        return values
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32) / 255
        return values[:, :, None] if grey else values
    values = np.asarray(image.convert("LA" if grey else "RGBA"), dtype=np.float32) / 255
    alpha = values[:, :, -1:]
    return alpha * values[:, :, :-1] + (1 - alpha)


def check_picture(path: Path, name: str = "output") -> None:
    """Raises a ValueError where :func:`save` could not write the file that the argument ``name`` gave."""
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in known:
        raise ValueError(f"{name} must be a picture that ends in one of .{', .'.join(known)}, got {path}")
    check_file(path, name)


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure under the very name given, as PNG where that has no ending; matplotlib would add one."""
    figure.savefig(path, format=path.suffix[1:] or "png", **options)


def write_picture(picture: Tensor, path: Path) -> None:
    """Writes [C, H, W] with 8 bits a value; what is beyond [0, 1] becomes black or white."""
    Image.fromarray(_bytes(picture)).save(path)


def draw_grid(panels: Sequence[tuple[str, Tensor]], title: str, path: Path) -> None:
    """Draws labelled pictures at one size, chosen so that a pixel of the last becomes a square of whole pixels.

    A picture larger than that is smoothed, and one so large that its pixels can't be shown as well.
    """
    height, width = panels[-1][1].shape[-2:]
    scale = max(1, _SIDE // max(height, width)) if max(height, width) <= 2 * _SIDE else _SIDE / max(height, width)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    cell = (max(width, _SIDE) + _GAP, height + _TITLE)
    columns = min(len(panels), max(2, math.ceil(math.sqrt(1.6 * len(panels) * cell[1] / cell[0]))))
    rows = -(-len(panels) // columns)
    full = (columns * cell[0] + _GAP, rows * cell[1] + _TITLE + _GAP)
    figure = Figure(figsize=(full[0] / _DPI, full[1] / _DPI), dpi=_DPI)
    for i, (label, picture) in enumerate(panels):
        left = _GAP + i % columns * cell[0]
        bottom = full[1] - _TITLE - (i // columns + 1) * cell[1]
        axis = figure.add_axes((left / full[0], bottom / full[1], width / full[0], height / full[1]))
        enlarged = picture.shape[-2] <= height and picture.shape[-1] <= width
        pixels = _bytes(picture)
        axis.imshow(
            pixels,
            cmap="gray" if pixels.ndim == 2 else None,
            vmin=0,
            vmax=255,
            interpolation="nearest" if enlarged else "antialiased",
            aspect="auto",
        )
        axis.axis("off")
        axis.set_title(label, fontsize=10, loc="left")
    figure.text(_GAP / full[0], 1 - _TITLE / 2 / full[1], title, fontsize=11, va="center", parse_math=False)
    save(figure, path)


def _bytes(picture: Tensor) -> np.ndarray:
    """[H, W, 3], or [H, W] of greyscale."""
    values = (picture.clamp(0, 1) * 255).round().byte().movedim(0, 2).numpy()
    return values[:, :, 0] if picture.shape[0] == 1 else values
