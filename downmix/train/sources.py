"""Image data sets by name or folder, split into training and held-out images."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key
from torch.utils.data import IterableDataset
from torchvision.datasets import FashionMNIST

from .images import SUFFIXES, DataError, Images, ImageStream, TimmImages
from .recipe import Recipe

TORCHVISION_SETS = ("fashion_mnist", "cifar10", "cifar100")
_TEST_FOLDERS = ("val", "validation", "test")
_create_dataset: Any = timm.data.create_dataset


@dataclass
class Split:
    """Training and held-out images of one data set, and the names of its classes, in the order of their labels."""

    train: Images | ImageStream
    test: Images | ImageStream
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def with_folder(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields to change of a recipe; where ``data`` is a folder, its ``data_dir``, which would be looked into first for
    a segmentation and may be gone, is left out."""
    data = fields.get("data")
    is_folder = data not in (None, *TORCHVISION_SETS) and Path(data).is_dir()
    return {"data_dir": None} | fields if is_folder else fields


def load_data(recipe: Recipe) -> Split:
    """Finds the data set that ``recipe.data`` names.

    ``digits`` lie inside scikit-learn; the last 360 of its 1,797 scans are held out, mostly by writers that no training
    scan is by. ``fashion_mnist``, ``cifar10`` and ``cifar100`` are read from ``recipe.data_dir`` or downloaded into it
    by torchvision. A path may be a folder of class folders, with ``train`` and ``val``, ``validation`` or ``test``
    inside, or without (then every fifth image of a class is held out); ``train`` and ``val`` may be folders of tar
    files or ``train.tar`` and ``val.tar`` too, and ``recipe.val_split`` may name the one that is held out. All else is
    a name that ``timm.data.create_dataset`` takes.

    Raises:
        DataError: where nothing usable is found.
    """
    name, root = recipe.data, Path(recipe.data_dir or "data")
    if recipe.data_dir is not None and name not in TORCHVISION_SETS and not root.is_dir():
        raise DataError(f"the data folder {root} does not exist; check data_dir")
    if name == "digits":
        return _digits()
    if name in TORCHVISION_SETS:
        if any((root / part).is_dir() for part in ("train", *_TEST_FOLDERS)):
            return _folders(root, recipe.val_split)
        return _idx_files(root) if _find_idx(root, "train-images") else _torchvision(name, root)
    if Path(name).is_dir():
        read = _tars if _tar_part(Path(name), "train") else _folders
        return read(Path(name), recipe.val_split)
    if "/" in name and name.split("/")[0] in ("torch", "hfds", "hfids", "tfds", "wds"):
        return _timm(recipe, root)
    raise DataError(
        f"there is no data set or folder {name!r}; known are digits, {', '.join(TORCHVISION_SETS)}, the path of a "
        "folder with a folder of images for each class, and timm's names (torch/…, hfds/…, wds/…, tfds/…)"
    )


def _digits() -> Split:
    from sklearn.datasets import load_digits  # here: a second to import, and only needed for this set

    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    items = list(zip(images, digits.target.tolist(), strict=True))
    return Split(Images(items[:-360], 10), Images(items[-360:], 10), [str(digit) for digit in range(10)])


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
    count = len(train.classes)
    return Split(_from_torchvision(train, count), _from_torchvision(test, count), list(train.classes))


def _from_torchvision(dataset: Any, num_classes: int) -> Images:
    return Images(list(zip(dataset.data, map(int, dataset.targets), strict=True)), num_classes)


def _idx_files(root: Path) -> Split:
    """Reads the MNIST family's own files, as they are published and as Debian packages them."""
    parts = []
    for part in ("train", "t10k"):
        images, labels = _find_idx(root, f"{part}-images"), _find_idx(root, f"{part}-labels")
        if images is None or labels is None:
            raise DataError(f"{root} holds {part}-images… or {part}-labels…, but not both; copy the missing file there")
        pixels, targets = _read(images, 16, (28, 28)), _read(labels, 8, ()).tolist()
        if len(pixels) != len(targets):
            raise DataError(
                f"{images} holds {len(pixels)} images, but {labels} {len(targets)} labels; copy both files there again"
            )
        parts.append(Images(list(zip(pixels, targets, strict=True)), 10))
    train, test = parts
    return Split(train, test, FashionMNIST.classes)


def _find_idx(root: Path, stem: str) -> Path | None:
    return next(iter(sorted(root.glob(f"{stem}-idx*-ubyte*"))), None)


def _read(path: Path, head: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes behind the file's head, as items of ``shape``."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return np.frombuffer(content, np.uint8, offset=head).reshape(-1, *shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is cut off or damaged ({error}); copy it there again") from error


def _test_folders(val_split: str) -> tuple[str, ...]:
    """What the held-out part may be called: as ``val_split`` says, or any name where that is the default."""
    return _TEST_FOLDERS if val_split == Recipe.val_split else (val_split,)


def _folders(root: Path, val_split: str) -> Split:
    train, names = root / "train", _test_folders(val_split)
    test = next((root / name for name in names if (root / name).is_dir()), None)
    asked = names != _TEST_FOLDERS
    if train.is_dir() != (test is not None) or (asked and test is None):
        neither = "" if asked else ", or neither"
        raise DataError(f"{root} needs both a folder train and one of {', '.join(names)}{neither}")
    if test is None:
        classes = _class_folders(root)
        kept = [item for files in classes.values() for i, item in enumerate(files) if i % 5 != 4]
        held_out = [item for files in classes.values() for item in files[4::5]]
        if not held_out:
            raise DataError(
                f"{root} leaves no held-out image: a class needs at least 5 images where there is no test folder"
            )
    else:
        classes, test_classes = _class_folders(train), _class_folders(test)
        _same_classes(set(classes), set(test_classes), train, test)
        kept, held_out = ([item for files in each.values() for item in files] for each in (classes, test_classes))
    return Split(Images(kept, len(classes)), Images(held_out, len(classes)), list(classes))


def _class_folders(root: Path) -> dict[str, list[tuple[Path, int]]]:
    """The images of each class, with its label."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise DataError(f"{root} holds no class folders; expected one folder of images for each class")
    classes = {}
    for label, folder in enumerate(folders):
        files = sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(
                f"the class folder {folder} holds no image, a file that ends in {', '.join(SUFFIXES)}; put images "
                "there or remove the folder"
            )
        classes[folder.name] = [(path, label) for path in files]
    return classes


def _files(folder: Path) -> Iterator[Path]:
    """Behind links too, as timm and torchvision look, where Path.rglob does not; but not round and round."""
    for where, inside, names in os.walk(folder, followlinks=True):
        yield from (Path(where, name) for name in names)
        if inside:
            around = {each.resolve() for each in (Path(where), *Path(where).parents)}
            inside[:] = [name for name in inside if Path(where, name).resolve() not in around]


def _same_classes(train_classes: set[str], test_classes: set[str], train: object, test: object) -> None:
    differing = train_classes ^ test_classes
    if differing:
        raise DataError(f"{train} and {test} must have the same class folders; only one has {sorted(differing)[0]!r}")


def _tar_part(root: Path, part: str) -> Path | None:
    """``part.tar``, or the folder ``part`` where that holds tar files."""
    if (root / f"{part}.tar").is_file():
        return root / f"{part}.tar"
    return root / part if (root / part).is_dir() and any((root / part).glob("*.tar")) else None


def _tars(root: Path, val_split: str) -> Split:
    train, names = _tar_part(root, "train"), _test_folders(val_split)
    test = next((path for name in names if (path := _tar_part(root, name))), None)
    if train is None or test is None:
        raise DataError(f"{root} needs a tar file or a folder of tar files called train, and one of {', '.join(names)}")
    readers: list[Any] = []
    for path in (train, test):
        try:
            # Without cache_tarinfo, which would unpickle a file that lies among the data.
            readers.append(ReaderImageInTar(str(path), cache_tarinfo=False))
        except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{path} can't be read as tar files with images in class folders ({error})") from error
    names = [_settle_order(reader) for reader in readers]
    for path, classes in zip((train, test), names, strict=True):
        if {"", "."} & set(classes):  # timm takes all of these for one class
            raise DataError(
                f"{path} holds images that lie in no class folder; pack them as CLASS/NAME.png, or into a CLASS.tar a "
                "class as NAME.png, without ./ before it"
            )
    _same_classes(set(names[0]), set(names[1]), train, test)
    datasets = [timm.data.ImageDataset("", reader=reader) for reader in readers]
    count = len(names[0])
    return Split(TimmImages(datasets[0], count), TimmImages(datasets[1], count), names[0])


def _settle_order(reader: Any) -> list[str]:
    """The names of its classes, and it gives their images, in one order everywhere.

    timm's takes a01 and a1, or Bee and bee, for the same. Which comes first is then by the hashes of strings, which
    differ from process to process, and of files called the same in several tar files by the file system.
    """
    before = _in_order(reader.class_name_to_idx)
    names = sorted(before, key=lambda name: (natural_key(name), name))
    targets = np.array([names.index(name) for name in before])[reader.targets]
    # of a file in a tar file, perhaps within another
    places = [(file.path, outer or "", inner.name if inner else "") for file, outer, inner in reader.samples]
    order = sorted(range(len(places)), key=lambda i: (natural_key(places[i][0]), places[i]))
    reader.samples, reader.targets = reader.samples[order], targets[order]
    reader.class_name_to_idx = {name: label for label, name in enumerate(names)}
    return names


def _timm(recipe: Recipe, root: Path) -> Split:
    parts = []
    try:
        for split, training in ((recipe.train_split, True), (recipe.val_split, False)):
            options = {"is_training": training, "batch_size": recipe.batch_size, "seed": recipe.seed, "download": True}
            parts.append(_create_dataset(recipe.data, root=str(root), split=split, **options))
    except (OSError, RuntimeError, ImportError, AssertionError, ValueError) as error:
        raise DataError(f"timm can't open the data set {recipe.data!r} in {root}: {error}") from error
    classes = [_classes(part) for part in parts]
    if all(classes):
        _same_classes(
            set(classes[0]), set(classes[1]), f"the split {recipe.train_split}", f"{recipe.val_split} of {recipe.data}"
        )
    count = recipe.num_classes or len(classes[0])
    if not count:
        raise DataError(f"timm's data set {recipe.data!r} does not say how many classes it has; pass num_classes")
    wrap = ImageStream if isinstance(parts[0], IterableDataset) else TimmImages
    names = classes[0] if len(classes[0]) == count else [str(label) for label in range(count)]
    return Split(wrap(parts[0], count), wrap(parts[1], count), names)


def _classes(dataset: Any) -> list[str]:
    labels = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return _in_order(labels) if labels else list(map(str, getattr(dataset, "classes", None) or ()))


def _in_order(labels: dict[Any, int]) -> list[str]:
    return [str(name) for name in sorted(labels, key=lambda name: labels[name])]
