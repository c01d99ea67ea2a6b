"""`downmix explain cam`: where networks look, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from ..explain import METHODS, attend
from ..train.images import SUFFIXES
from ._console import wide_console
from ._picture import check_picture, read_rgb, save
from ._trained import read_images, side_by_side

HELP = "Where networks look in images, side by side: GradCAM and its kin, with the predicted classes and scores."
_ROWS = 16  # of a picture; more images make more pictures


@dataclass
class Look:
    """What one network saw in one image.

    Attributes:
        seen (Tensor[H, W, 3]): the image as the network got it, without the normalisation.
        map (Tensor[H, W]): where it looked, 0 to 1.
        scores (Tensor[K]): of the classes; they add up to 1.
        target: the class that the map speaks for.
    """

    seen: Tensor
    map: Tensor
    scores: Tensor
    target: int


def add_arguments(parser: Any) -> None:
    parser.add_argument("images", nargs="+", type=Path, help="image files of any size, or folders of them")
    parser.add_argument(
        "--models", nargs="+", type=str, required=True, help="networks, by their names in timm or NAME:key=value,…"
    )
    parser.add_argument(
        "--checkpoints", nargs="+", type=str, default=None, help="trained weights, one each; pretrained for timm's"
    )
    parser.add_argument("--method", choices=tuple(METHODS), default="gradcam", help="by its name in grad-cam")
    parser.add_argument("--layer", type=str, default=None, help="by default the last map in front of the head")
    parser.add_argument("--target", type=str, default=None, help="the class asked for; by default the predicted one")
    parser.add_argument(
        "--classes", type=Path, default=None, help="file with a class a line, or folder of class folders"
    )
    parser.add_argument("--image_size", type=int, default=None, help="height and width; by default the network's own")
    parser.add_argument("--batch_size", type=int, default=8, help="images at once")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--output", type=Path, default=Path("runs/cam.png"), help="picture, *.png or *.svg")


def run(args: Any) -> None:
    cam(**args)


def cam(
    images: list[Path],
    *,
    models: list[str],
    checkpoints: list[str] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    target: str | None = None,
    classes: Path | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    output: Path = Path("runs/cam.png"),
    console: Console | None = None,
) -> dict[str, list[Look]]:
    """Draws where each network looks in each image, an image a row and a network a column.

    The arguments are the command's.

    Returns:
        What each network saw, by the title of its column, in the order of the images.

    Raises:
        ValueError: if an image, a network, its weights, the layer, the class or ``output`` can't be used.
    """
    check_picture(output)
    console = console or wide_console()
    files = list(_find(images))
    found: dict[str, list[Look]] = {}
    names: list[str] = []
    for title, network, names in side_by_side(models, checkpoints, classes, device):
        label = None if target is None else _label(target, names)
        with console.status(f"{method} of {' '.join(title.split())}"):
            found[title] = look(network, files, method, layer, label, image_size, batch_size)
    for row, file in enumerate(files):
        told = (f"{' '.join(name.split())}: {describe(looks[row], names)}" for name, looks in found.items())
        console.print(f"{file}  {'   '.join(told)}", soft_wrap=True, highlight=False)
    for path, rows in _pages(output, len(files)):
        draw({name: [looks[i] for i in rows] for name, looks in found.items()}, [files[i] for i in rows], names, path)
        console.print(f"picture: {path}", soft_wrap=True)
    return found


def look(
    network: nn.Module,
    files: list[Path],
    method: str,
    layer: str | None,
    target: int | None,
    image_size: int | None,
    batch_size: int,
) -> list[Look]:
    """What ``network`` sees in each file, ``batch_size`` of them at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    looks = []
    for start in range(0, len(files), batch_size):
        batch, seen = read_images(network, files[start : start + batch_size], image_size)
        found = attend(network, batch, method=method, layer=layer, target=target)
        looks += map(Look, seen, found.maps, found.scores, found.targets.tolist())
    return looks


def _find(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"the folder {path} holds no image")
        yield from files


def _label(target: str, names: list[str]) -> int:
    if target in names:
        return names.index(target)
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    raise ValueError(f"there is no class {target!r}; known are {', '.join(names[:20])}{', …' * (len(names) > 20)}")


def describe(look: Look, names: list[str]) -> str:
    """The predicted class and its score, and those of the class that the map speaks for where it is another."""
    best = int(look.scores.argmax())
    text = f"{names[best]} {look.scores[best]:.2f}"
    return text if look.target == best else f"{text}, map: {names[look.target]} {look.scores[look.target]:.2f}"


def _pages(output: Path, count: int) -> Iterator[tuple[Path, range]]:
    pages = math.ceil(count / _ROWS)
    for page in range(pages):
        path = output if pages == 1 else output.with_stem(f"{output.stem}-{page + 1}")
        yield path, range(page * _ROWS, min((page + 1) * _ROWS, count))


def overlay(look: Look) -> Tensor:
    """The image under the map's colours, [H, W, 3]."""
    colours = matplotlib.colormaps["jet"](look.map.numpy())[..., :3]
    return 0.55 * look.seen + 0.45 * torch.from_numpy(colours).float()


def draw(found: dict[str, list[Look]], files: list[Path], names: list[str], path: Path) -> None:
    """The image, then each network's view of it under its map."""
    rows, columns = len(files), 1 + len(found)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, file in enumerate(files):
        axes[row, 0].imshow(read_rgb(file))
        axes[row, 0].set_title("/".join(file.parts[-2:]), fontsize=8)
        for axis, (name, looks) in zip(axes[row, 1:], found.items(), strict=True):
            axis.imshow(overlay(looks[row]).numpy())
            axis.set_title(f"{name}\n{describe(looks[row], names)}", fontsize=8)
    save(figure, path, dpi=100)
