"""Labelled images, read one by one, from pixels, files, tar files, or whatever timm opens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets.folder import IMG_EXTENSIONS

SUFFIXES = IMG_EXTENSIONS  # of the files in folders that are taken for images
# What Pillow raises; UnidentifiedImageError is an OSError, and a damaged AVIF or DDS is a RuntimeError.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError)


class DataError(ValueError):
    """Data that can't be used, in a sentence that says what was expected, what came and what to do."""


class BadImageError(DataError):
    """One image that can't be read."""


class NoScoreError(DataError):
    """Samples of which nothing counts, so that a network has no score on them."""


class Images(Dataset[Any]):
    """(image, label) pairs as RGB, transformed by ``transform`` where that is set.

    Args:
        items: the path or the pixels, and the label, of every image.
        num_classes: labels are below this.
    """

    def __init__(self, items: Sequence[tuple[Any, int]], num_classes: int):
        self.items, self.num_classes = items, num_classes
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            source, label = self._source(index)
            image = _open(source)
        except UNREADABLE as error:
            raise BadImageError(
                f"{self.name(index)} can't be read as an image ({error}); replace or remove it"
            ) from error
        check_label(label, self.num_classes, self.name(index))
        return (self.transform(image) if self.transform else image), int(label)

    def name(self, index: int) -> str:
        """What a message calls the image."""
        source = self.items[index][0]
        return str(source) if isinstance(source, Path) else f"image {index}"

    def _source(self, index: int) -> tuple[Any, int]:
        return self.items[index]


class TimmImages(Images):
    """The same from a data set that timm opened: one with a reader, or one of torchvision's."""

    def __init__(self, dataset: Any, num_classes: int):
        super().__init__(dataset, num_classes)
        self.reader = getattr(dataset, "reader", None)

    def name(self, index: int) -> str:
        return f"image {index}" if self.reader is None else f"image {index} ({self.reader.filename(index)})"

    def _source(self, index: int) -> tuple[Any, int]:
        # Not the data set itself, which takes the next image where one can't be read.
        return self.items[index] if self.reader is None else self.reader[index]


class ImageStream(IterableDataset[Any]):
    """Images that can only be read in the order in which they come, such as WebDataset shards."""

    def __init__(self, dataset: Any, num_classes: int):
        self.dataset, self.num_classes = dataset, num_classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for place, (image, label) in enumerate(self.dataset):
            check_label(label, self.num_classes, f"image {place} of the stream")
            yield image, int(label)

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


def check_label(label: int, num_classes: int, name: str) -> None:
    if not 0 <= label < num_classes:
        raise DataError(f"{name} has the label {label}, but there are {num_classes} classes, 0 to {num_classes - 1}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a colour. Pillow's own conversion makes all above 255 white.

    Raises:
        ValueError: where nothing says which value is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # older Pillows' word for it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # as Pillow does with colours of 16 bits
    elif image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, of which none is known to be white; save it with 8 or 16 bits")
    return image.convert("RGB")


def _open(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return to_rgb(Image.open(file))
    if hasattr(source, "read"):
        with source:
            return to_rgb(Image.open(source))
    return to_rgb(Image.fromarray(np.asarray(source)))  # pixels: [H, W] or [H, W, 3]
