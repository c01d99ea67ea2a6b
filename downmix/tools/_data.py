"""Image data sets by name or folder, split into training and held-out images."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset, IterableDataset

TORCHVISION_SETS = ("fashion_mnist", "cifar10", "cifar100")
_TEST_FOLDERS = ("val", "validation", "test")
_EXTENSIONS = timm.data.get_img_extensions()
_create_dataset: Any = timm.data.create_dataset


class DataError(ValueError):
    """Data that can't be used, in a sentence that says what was expected, what came and what to do."""


@dataclass
class Split:
    """Training and held-out images of one data set, and the number of classes."""

    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int


class Images(Dataset[Any]):
    """(image, label) pairs as RGB, transformed by ``transform``, which timm's loader sets.

    Args:
        items: the path or the pixels, and the label, of every image.
    """

    def __init__(self, items: Sequence[tuple[Any, int]]):
        self.items = items
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        source, label = self.items[index]
        image = open_image(source)
        return (self.transform(image) if self.transform else image), int(label)


def load_data(name: str, folder: str | None = None) -> Split:
    """Finds a data set.

    Args:
        name: ``digits`` (inside scikit-learn; the last 360 of its 1,797 scans are held out, mostly by writers that no
            training scan is by); ``fashion_mnist``, ``cifar10`` or ``cifar100``, read from ``folder`` or downloaded
            into it by torchvision; the path of a folder of class folders, with ``train`` and ``val``,
            ``validation`` or ``test`` inside, or without (then every fifth image of a class is held out); or any name
            that ``timm.data.create_dataset`` takes, such as ``hfds/…``.
        folder: where the data lie, or are downloaded to; ``data`` if None.

    Raises:
        DataError: where nothing usable is found.
    """
    root = Path(folder or "data")
    if folder is not None and name not in TORCHVISION_SETS and not root.is_dir():
        raise DataError(f"the data folder {folder} does not exist; check data_dir")
    if name == "digits":
        return _digits()
    if name in TORCHVISION_SETS:
        if any((root / part).is_dir() for part in ("train", *_TEST_FOLDERS)):
            return _folders(root)
        return _idx_files(root) if _find_idx(root, "train-images") else _torchvision(name, root)
    if Path(name).is_dir():
        return _folders(Path(name))
    if "/" in name and name.split("/")[0] in ("torch", "hfds", "hfids", "tfds", "wds"):
        return _timm(name, root)
    raise DataError(
        f"there is no data set or folder {name!r}; known are digits, {', '.join(TORCHVISION_SETS)}, the path of a "
        "folder with a folder of images for each class, and timm's names (torch/…, hfds/…, wds/…, tfds/…)"
    )


def _digits() -> Split:
    from sklearn.datasets import load_digits  # here: a second to import, and only needed for this set

    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    items = list(zip(images, digits.target.tolist(), strict=True))
    return Split(Images(items[:-360]), Images(items[-360:]), num_classes=10)


def _torchvision(name: str, root: Path) -> Split:
    try:
        train, test = (
            _create_dataset(f"torch/{name}", root=str(root), split=split, download=True)
            for split in ("train", "validation")
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is neither in the folder {root} nor could it be downloaded there ({error}); "
            "pass a folder with a copy as data_dir"
        ) from error
    return Split(_from_torchvision(train), _from_torchvision(test), num_classes=len(train.classes))


def _from_torchvision(dataset: Any) -> Images:
    return Images(list(zip(dataset.data, map(int, dataset.targets), strict=True)))


def _idx_files(root: Path) -> Split:
    """Reads the MNIST family's own files, as they are published and as Debian packages them."""
    parts = []
    for part in ("train", "t10k"):
        images, labels = _find_idx(root, f"{part}-images"), _find_idx(root, f"{part}-labels")
        if images is None or labels is None:
            raise DataError(f"{root} holds {part}-images… or {part}-labels…, but not both; copy the missing file there")
        pixels = np.frombuffer(_read(images), np.uint8, offset=16).reshape(-1, 28, 28)
        targets = np.frombuffer(_read(labels), np.uint8, offset=8).tolist()
        parts.append(Images(list(zip(pixels, targets, strict=True))))
    return Split(*parts, num_classes=10)


def _find_idx(root: Path, stem: str) -> Path | None:
    return next(iter(sorted(root.glob(f"{stem}-idx*-ubyte*"))), None)


def _read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _folders(root: Path) -> Split:
    train = root / "train"
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if train.is_dir() != (test is not None):
        raise DataError(f"{root} needs both a folder train and one of {', '.join(_TEST_FOLDERS)}, or neither")
    if test is None:
        classes = _class_folders(root)
        held_out = [item for _, files in classes for item in files[4::5]]
        kept = [item for _, files in classes for i, item in enumerate(files) if i % 5 != 4]
        return _checked(root, Images(kept), Images(held_out), len(classes))
    train_classes, test_classes = _class_folders(train), _class_folders(test)
    differing = {name for name, _ in train_classes} ^ {name for name, _ in test_classes}
    if differing:
        raise DataError(f"{train} and {test} must have the same class folders; only one has {sorted(differing)[0]!r}")
    train_images, test_images = (
        Images([item for _, files in classes for item in files]) for classes in (train_classes, test_classes)
    )
    return _checked(root, train_images, test_images, len(train_classes))


def _class_folders(root: Path) -> list[tuple[str, list[tuple[Path, int]]]]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise DataError(f"{root} holds no class folders; expected one folder of images for each class")
    classes = []
    for label, folder in enumerate(folders):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _EXTENSIONS)
        if not files:
            raise DataError(f"the class folder {folder} holds no image; put images there or remove the folder")
        classes.append((folder.name, [(path, label) for path in files]))
    return classes


def _checked(root: Path, train: Images, test: Images, num_classes: int) -> Split:
    if len(test) == 0:
        raise DataError(
            f"{root} leaves no held-out image: a class needs at least 5 images where there is no test folder"
        )
    return Split(train, test, num_classes)


def _timm(name: str, root: Path) -> Split:
    try:
        train, test = (
            _create_dataset(name, root=str(root), split=split, is_training=split == "train", download=True)
            for split in ("train", "validation")
        )
    except (OSError, RuntimeError, ImportError, AssertionError, ValueError) as error:
        raise DataError(f"timm can't open the data set {name!r} in {root}: {error}") from error
    if isinstance(train, IterableDataset):
        raise DataError(f"{name} can only be streamed, which `downmix compare` can't yet; use a folder or hfds/…")
    labels = getattr(train, "classes", None) or getattr(getattr(train, "reader", None), "class_to_idx", None)
    if not labels:
        raise DataError(f"timm's data set {name!r} does not say what classes it has; use a folder of class folders")
    return Split(train, test, num_classes=len(labels))


def open_image(source: Any) -> Image.Image:
    """An image as RGB, from its file or its pixels; DataError where it can't be read."""
    if not isinstance(source, Path):  # pixels: [H, W] or [H, W, 3]
        return Image.fromarray(np.asarray(source)).convert("RGB")
    try:
        with open(source, "rb") as file:
            return Image.open(file).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{source} can't be read as an image ({error}); replace or remove it") from error
