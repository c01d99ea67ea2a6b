"""Folders of images and masks: what lies in them is checked, read and labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes
from torchvision.transforms.v2 import functional

from .images import SUFFIXES, UNREADABLE, BadImageError, DataError, to_rgb

SPLITS = ("train", "val", "test")
VOID = 255  # the label of pixels that don't count, wherever masks are tensors; files may use another

Pair = tuple[Path, Path]
JointTransform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]


class SegmentationImages(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """(image, mask) pairs, transformed together.

    Args:
        pairs: paths of every image and its mask.
        labels (int array[256]): the class of every value that a mask may hold, :data:`VOID`, or −1 where it may not.
        transform: takes and gives an image (uint8 Tensor[3, H, W]) and its mask (int64 Tensor[H, W]).
    """

    def __init__(self, pairs: Sequence[Pair], labels: np.ndarray, transform: JointTransform):
        self.pairs = list(pairs)
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_path, mask_path = self.pairs[index]
        image = _open(image_path, to_rgb)
        labels = _read_labels(mask_path, self.labels)
        if labels.shape != (image.height, image.width):
            raise DataError(
                f"the mask {mask_path} is {labels.shape[1]}×{labels.shape[0]} pixels, but its image is "
                f"{image.width}×{image.height}; a mask needs its image's size"
            )
        return self.transform(
            tv_tensors.Image(functional.pil_to_tensor(image)), tv_tensors.Mask(torch.from_numpy(labels))
        )


def find_pairs(root: Path, split: str) -> list[Pair]:
    """The images of a split and their masks, by name.

    Args:
        root: holds ``{train,val,test}/{images,masks}``, where ``masks`` has a PNG of the same name for every image; or
            CityScapes as published, ``leftImg8bit`` and ``gtFine``. CityScapes keeps the masks of its test images to
            itself, so that ``test`` means its validation images there.
        split: train, val or test.

    Raises:
        DataError: where folders, images or masks are missing.
    """
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist; give data_dir")
    if is_cityscapes(root):
        return _cityscapes_pairs(root, "val" if split == "test" else split)
    images, masks = root / split / "images", root / split / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder} is missing; {root} needs a folder images and a folder masks in each of {SPLITS}")
    image_of, mask_of = _by_stem(images, SUFFIXES), _by_stem(masks, (".png",))
    if not image_of:
        raise DataError(f"{images} holds no image; expected files that end in {', '.join(SUFFIXES)}")
    if missing := sorted(image_of.keys() - mask_of.keys()):
        raise DataError(
            f"{len(missing)} of {len(image_of)} images have no mask, the first is {image_of[missing[0]]}; "
            f"expected {masks / missing[0]}.png"
        )
    if missing := sorted(mask_of.keys() - image_of.keys()):
        raise DataError(
            f"{len(missing)} of {len(mask_of)} masks have no image, the first is {mask_of[missing[0]]}; "
            f"expected an image {missing[0]} in {images}"
        )
    return [(image_of[name], mask_of[name]) for name in sorted(image_of)]


def largest_size(pairs: Sequence[Pair]) -> tuple[int, int]:
    """The largest height and the largest width among the images; those that can't be read are met again later."""
    sizes = [(1, 1)]
    for image, _ in pairs:
        with suppress(*UNREADABLE), Image.open(image) as opened:
            sizes.append((opened.height, opened.width))
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def is_cityscapes(root: Path) -> bool:
    return (root / "leftImg8bit").is_dir()


def labels_of_values(num_classes: int, void: int | None) -> np.ndarray:
    """What the values in masks mean: 0, 1, 2 … are the classes in their order, leaving out ``void``."""
    if not 1 <= num_classes <= VOID or not (void is None or 0 <= void <= 255):
        raise DataError(f"masks hold 1 to {VOID} classes and a void of 0 to 255, got {num_classes} and void {void}")
    labels = np.full(256, -1, np.int64)
    labels[[value for value in range(256) if value != void][:num_classes]] = range(num_classes)
    if void is not None:
        labels[void] = VOID
    return labels


def cityscapes_labels(class_names: Sequence[str]) -> np.ndarray:
    """What the values in CityScapes' own ``labelIds`` files mean: 19 of the 34 are classes, the others don't count."""
    known = sorted((c for c in Cityscapes.classes if 0 <= c.train_id < VOID), key=lambda c: c.train_id)
    if [c.name for c in known] != list(class_names):
        raise DataError(
            f"CityScapes' own folders have the classes {', '.join(c.name for c in known)}, in this order; "
            f"the recipe has {', '.join(class_names)}"
        )
    labels = np.full(256, -1, np.int64)
    for c in Cityscapes.classes:
        if c.id >= 0:
            labels[c.id] = c.train_id
    return labels


def _cityscapes_pairs(root: Path, split: str) -> list[Pair]:
    try:
        found = Cityscapes(str(root), split, target_type="semantic")
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"torchvision finds no CityScapes in {root} ({error}); it needs leftImg8bit and gtFine"
        ) from error
    # torchvision lists folders in the file system's order, which differs between machines
    pairs = sorted((Path(image), Path(target[0])) for image, target in zip(found.images, found.targets, strict=True))
    for image, mask in pairs:
        if not mask.is_file():
            raise DataError(f"the mask {mask} of the image {image} is missing; unpack gtFine again")
    return pairs


def _by_stem(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in extensions:
            continue
        if path.stem in found:
            raise DataError(f"{folder} holds {found[path.stem].name} and {path.name}; a name may stand there once")
        found[path.stem] = path
    return found


def _open(path: Path, convert: Callable[[Image.Image], Image.Image] = lambda image: image) -> Image.Image:
    try:
        with open(path, "rb") as file:
            image = Image.open(file)
            image.load()
            return convert(image)
    except UNREADABLE as error:
        raise BadImageError(f"{path} can't be read as an image ({error}); replace or remove it") from error


def _read_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    mask = _open(path)
    if mask.format != "PNG":  # a JPEG's values are near those of the classes, or those of others
        raise DataError(
            f"the mask {path} is a {mask.format} file by another name; save it as PNG, from where it was made"
        )
    if mask.mode != "L":
        kinds: dict[str, Any] = {"P": "a palette", "RGB": "colours", "RGBA": "colours", "1": "only black and white"}
        raise DataError(
            f"the mask {path} holds {kinds.get(mask.mode, f'mode {mask.mode}')}; a mask needs one channel of 8 bits "
            "whose values are the classes, as PIL writes with Image.fromarray(labels.astype('uint8')).save(…)"
        )
    values = np.asarray(mask)
    result = labels[values]
    if (result < 0).any():
        wrong = ", ".join(map(str, np.unique(values[result < 0])[:8]))
        right = ", ".join(map(str, np.flatnonzero(labels >= 0)))
        raise DataError(f"the mask {path} holds the values {wrong}; the classes and void have {right}")
    return result
