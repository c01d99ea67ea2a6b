"""What the page shows of an image, computed by the functions of `downmix explain` and `downmix pool`."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...explain import last_of_each_stage, measure_probabilities, pix_layers
from ...layers.pools import POOLS
from ...train.images import UNREADABLE
from .. import _probability_report as report
from .._explain_cam import look, overlay
from .._picture import draw_grid, read_picture, write_picture
from .._trained import read_images
from ..pool import Reduced, describe_sizes, reduce_picture

MAX_PIXELS = 32_000_000
# Others that Pillow opens run programs, such as EPS, or can't be read from an upload.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_POOLED_SIDE = 1000  # pixels; larger pictures would keep the pools busy and end as small
_SHOWN_CLASSES = 5
_STAGES_ABREAST = 2  # as many as can be read in half a page


@dataclass
class NetworkView:
    """What the page shows of a network; pictures are data URLs.

    Attributes:
        title: the network's.
        cam: the image under the class activation map.
        predictions: the most likely classes and their scores.
        figures: p of the last PiX layer of each stage; none where there are no such layers.
        layers: of each PiX layer its name and a few numbers, as ``summary`` gives them.
    """

    title: str
    cam: str
    predictions: list[tuple[str, float]]
    figures: list[str]
    layers: dict[str, dict[str, Any]]


@dataclass
class PoolsView:
    """What the page shows of the pools: the picture of `downmix pool`, and its figures."""

    about: str
    grid: str
    pools: list[Reduced]

    @property
    def too_bright(self) -> bool:
        return any(bool(one.picture.max() > 1) for one in self.pools)


@contextmanager
def saved(data: bytes) -> Iterator[Path]:
    """The bytes as a file, in a folder that is removed afterwards.

    Raises:
        ValueError: if they are no image of a known format, or one of too many pixels. What is raised inside names the
            file without its folder.
    """
    _check(data)
    with TemporaryDirectory(prefix="downmix-") as folder:
        path = Path(folder) / "the image"
        path.write_bytes(data)
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(f"{folder}/", "")) from error


def _check(data: bytes) -> None:
    """Reads no more than the head, before anything is unpacked."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except UNREADABLE as error:
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise ValueError(f"this is no image that can be read{reason}; take one of {', '.join(FORMATS)}") from error
    if width * height > MAX_PIXELS:
        most = f"{MAX_PIXELS // 10**6} million"
        raise ValueError(f"an image may have {most} pixels, and this one has {width}×{height}; make it smaller")


def view_network(
    title: str, network: nn.Module, names: list[str], file: Path, method: str, image_size: int | None
) -> NetworkView:
    """What a network sees in an image file, and what its PiX layers decide."""
    (seen,) = look(network, [file], method, None, None, image_size, batch_size=1)
    scores, labels = seen.scores.topk(min(_SHOWN_CLASSES, len(names)))
    predictions = [(names[label], score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]
    cam = _drawn(lambda path: write_picture(overlay(seen).movedim(2, 0), path))
    return NetworkView(title, cam, predictions, *_probabilities(title, network, file, image_size))


def _probabilities(
    title: str, network: nn.Module, file: Path, image_size: int | None
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    try:
        pix_layers(network)
    except ValueError:
        return [], {}
    batch, _ = read_images(network, [file], image_size)
    found = measure_probabilities(network, [(batch, torch.zeros(1, dtype=torch.int64))], num_classes=1)
    model = title.split()[0]  # a checkpoint's path has no room in a figure
    last, figures = [name for name in last_of_each_stage(network) if name in found], []
    for start in range(0, len(last), _STAGES_ABREAST):
        stages = {name: found[name] for name in last[start : start + _STAGES_ABREAST]}
        figures.append(_drawn(lambda path, stages=stages: report.draw_stages(stages, [], [], model, path)))
    return figures, {name: report.summary(layer) for name, layer in found.items()}


def view_pools(file: Path) -> PoolsView:
    """What every pooling method makes of an image file, which is made smaller first where it is large."""
    picture = _at_most(read_picture(file), _POOLED_SIDE)
    found = reduce_picture(picture, list(POOLS))
    about = describe_sizes(picture, found[0], kernel_size=2)
    panels = [("the picture", picture), *((one.label, one.picture) for one in found)]
    return PoolsView(about, _drawn(lambda path: draw_grid(panels, about, path)), found)


def _at_most(picture: Tensor, side: int) -> Tensor:
    scale = side / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(scale * length)) for length in picture.shape[1:]]
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]


def _drawn(draw: Callable[[Path], None]) -> str:
    """The picture that ``draw`` writes, as a data URL."""
    with TemporaryDirectory(prefix="downmix-") as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
