import gzip
import struct
import tarfile
from functools import partial
from glob import glob
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers import reader_image_in_tar

from downmix.train import sources
from downmix.train.classification import Classification
from downmix.train.images import BadImageError, DataError, Images
from downmix.train.sources import Split, load_data

from .helpers import make_folders, quick_recipe


def load(data: object, data_dir: object = None, **fields: object) -> Split:
    return load_data(quick_recipe(str(data), data_dir=data_dir and str(data_dir), **fields))


def test_digits_split_is_fixed() -> None:
    split = load("digits")
    assert (len(split.train), len(split.test), split.num_classes) == (1437, 360, 10)
    image, label = split.test[0]
    assert (image.size, image.mode, label, split.class_names[2]) == ((8, 8), "RGB", 2, "2")


def test_linked_folders_are_read_and_folders_are_no_images(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "data")
    (root / "ant" / "more").symlink_to(make_folders(tmp_path / "more", count=4) / "ant")
    (root / "bee" / "folder.png").mkdir()
    split = load(root)
    names = [str(path.relative_to(root / "ant")) for path, label in split.train.items if not label]
    assert names == ["0.png", "1.png", "2.png", "3.png", "5.png", "more/0.png", "more/1.png", "more/2.png"]
    assert len(split.train) + len(split.test) == 6 + 4 + 6


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "data")
    (root / "ant" / "self").symlink_to(".")
    (root / "bee" / "all").symlink_to(root)
    (root / "bee" / "more").symlink_to(make_folders(tmp_path / "more", ("fly",), count=4))
    (tmp_path / "more" / "fly" / "back").symlink_to(root / "bee")
    split = load(root)
    assert len(split.train) + len(split.test) == 6 + 6 + 4


def test_files_of_every_kind_that_torchvision_knows_are_images(tmp_path: Path) -> None:
    make_folders(tmp_path, count=1)
    endings = ("JPG", "webp", "bmp", "tif", "ppm")
    for ending in endings:
        Image.new("RGB", (4, 4)).save(tmp_path / "ant" / f"a.{ending}")
    (tmp_path / "ant" / "notes.txt").touch()
    split = load(str(tmp_path))
    assert len(split.train) + len(split.test) == 2 + len(endings)


def test_class_folders_without_a_split_hold_out_every_fifth(tmp_path: Path) -> None:
    split = load(make_folders(tmp_path))
    assert [path.name for (path, _) in split.test.items] == ["4.png", "4.png"]
    assert len(split.train) == 10
    assert split.class_names == ["ant", "bee"]


@pytest.mark.parametrize("test_folder", ["val", "validation", "test"])
def test_class_folders_with_a_split(tmp_path: Path, test_folder: str) -> None:
    make_folders(tmp_path / "train")
    make_folders(tmp_path / test_folder, count=2)
    split = load(str(tmp_path))
    assert (len(split.train), len(split.test), split.class_names) == (12, 4, ["ant", "bee"])


def test_a_split_named_is_the_one_held_out_or_refused(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        make_folders(tmp_path / part, count=count)
    assert len(load(tmp_path).test) == 4
    for data in ((tmp_path,), ("cifar10", tmp_path)):
        assert len(load(*data, val_split="test").test) == 6
    with pytest.raises(DataError, match="needs both a folder train and one of tset$"):
        load(tmp_path, val_split="tset")
    with pytest.raises(DataError, match="needs both a folder train and one of test$"):  # not every fifth image
        load(tmp_path / "train", val_split="test")


def test_a_local_copy_of_cifar_in_folders(tmp_path: Path) -> None:
    make_folders(tmp_path / "train")
    make_folders(tmp_path / "test")
    assert len(load("cifar10", str(tmp_path)).train) == 12


def write_fashion_mnist(root: Path) -> None:
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
        labels = struct.pack(">II", 2049, count) + bytes(range(count))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def test_fashion_mnist_in_its_own_files(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    split = load("fashion_mnist", str(tmp_path))
    image, label = split.train[5]
    assert (image.size, label, len(split.test)) == ((28, 28), 5, 3)
    assert split.class_names[5] == "Sandal"
    assert np.asarray(image)[0, 1, 0] == (5 * 784 + 1) % 256


def test_damaged_files_of_fashion_mnist_are_named(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    changed = good[:30] + bytes([good[30] ^ 255]) + good[31:]
    for content in (b"", good[:60], b"no gzip", changed, gzip.compress(gzip.decompress(good)[:-1])):
        images.write_bytes(content)
        with pytest.raises(
            DataError, match=r"train-images-idx3-ubyte.gz is cut off or damaged \(.*copy it there again"
        ):
            load("fashion_mnist", str(tmp_path))
    images.write_bytes(good)
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"images-idx3-ubyte.gz holds 6 images, but .*labels-idx1-ubyte 5 labels; copy"):
        load("fashion_mnist", str(tmp_path))
    labels.write_bytes(b"")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is cut off or damaged"):
        load("fashion_mnist", str(tmp_path))


@pytest.mark.parametrize("shape", [(4, 8, 8, 3), (4, 8, 8)])
def test_torchvision_s_sets_are_read_from_memory(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR holds NumPy colour images and a list of labels, the MNIST family tensors of both."""

    class Downloaded:
        classes = ("a", "b")
        data = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        targets = (0, 1, 0, 1)

    if len(shape) == 3:
        Downloaded.data, Downloaded.targets = torch.from_numpy(Downloaded.data), torch.tensor(Downloaded.targets)
    monkeypatch.setattr(sources, "_create_dataset", lambda *args, **kwargs: Downloaded)
    split = load("cifar10")
    image, label = split.train[1]
    assert (image.size, image.mode, label, split.class_names) == ((8, 8), "RGB", 1, ["a", "b"])
    assert np.asarray(image)[0, 0, 0] == np.asarray(Downloaded.data)[1].flat[0]


def test_a_download_that_fails_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sources, "_create_dataset", fail)
    with pytest.raises(DataError, match=r"neither in the folder data nor could it be downloaded.*no route.*data_dir"):
        load("cifar100")


def test_bad_data_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data set or folder 'digit'; known are digits"):
        load("digit")
    with pytest.raises(DataError, match="the data folder .*nowhere does not exist"):
        load("digits", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no class folders"):
        load(str(tmp_path))
    make_folders(tmp_path / "a")
    (tmp_path / "a" / "cat").mkdir()
    with pytest.raises(DataError, match=r"the class folder .*cat holds no image, .*\.png, .*\.webp; put"):
        load(str(tmp_path / "a"))
    make_folders(tmp_path / "b" / "train")
    with pytest.raises(DataError, match="needs both a folder train and one of val, validation, test"):
        load(str(tmp_path / "b"))
    make_folders(tmp_path / "b" / "val", classes=("ant", "cow"))
    with pytest.raises(DataError, match="must have the same class folders; only one has 'bee'"):
        load(str(tmp_path / "b"))
    with pytest.raises(DataError, match="leaves no held-out image"):
        load(make_folders(tmp_path / "c", count=4))


def test_one_class_alone_is_refused_as_every_prediction_would_be_right(tmp_path: Path) -> None:
    make_folders(tmp_path / "cifar10")  # the folder that holds the data set's: all images would be of one class
    with pytest.raises(DataError, match=r"has one class alone, 'cifar10'; a classifier needs two or more"):
        Classification(quick_recipe(tmp_path))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_damaged_tar_file_is_named(mode: Literal["w", "w:gz"], tmp_path: Path) -> None:
    make_folders(tmp_path / "images")
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}.tar", mode) as tar:
            tar.add(tmp_path / "images", arcname=".")
    path = tmp_path / "train.tar"
    good = path.read_bytes()
    for content in (b"junk" * 100, good[: len(good) // 3], good[:60] + b"\xff" * 40 + good[100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train\.tar can't be read as tar files"):
            load(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_tar_files_have_one_order_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order the file system and sets have, which is that of the hashes of strings."""
    names = ["a1", "a01", "A1", "b"]
    make_folders(tmp_path / "images", tuple(names), count=2)
    for path in (tmp_path / part / f"{name}.tar" for part in ("train", "val") for name in names):
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for i in range(2):
                tar.add(tmp_path / "images" / path.stem / f"{i}.png", arcname=f"{i}.png")
    monkeypatch.setattr(reader_image_in_tar, "set", dict.fromkeys, raising=False)
    seen = []
    for backwards in (False, True):
        monkeypatch.setattr(reader_image_in_tar, "glob", partial(_glob, backwards=backwards))
        split = load(tmp_path)
        classes = [split.class_names[split.train[i][1]] for i in range(len(split.train))]
        seen.append((split.class_names, classes))
    assert seen[0] == seen[1] == (["A1", "a01", "a1", "b"], ["A1", "a01", "a1", "b"] * 2)


def _glob(pattern: str, backwards: bool, **options: bool) -> list[str]:
    return sorted(glob(pattern), reverse=backwards)


@pytest.mark.parametrize("before", ["", "./"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_tar_files_of_one_class_each(before: str, tmp_path: Path) -> None:
    make_folders(tmp_path / "images")
    for path in (tmp_path / part / f"{name}.tar" for part in ("train", "val") for name in ("ant", "bee")):
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for image in (tmp_path / "images" / path.stem).iterdir():
                tar.add(image, arcname=before + image.name)
    if not before:
        assert load(tmp_path).class_names == ["ant", "bee"]
        return
    with pytest.raises(DataError, match=r"train holds images that lie in no class folder; .* without \./ before"):
        load(tmp_path)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "ant" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"ant/0.png can't be read as an image .*; replace or remove it"):
        load(str(tmp_path)).train[0]
    truncated = (tmp_path / "ant" / "1.png").read_bytes()[:100]
    (tmp_path / "ant" / "1.png").write_bytes(truncated)
    with pytest.raises(DataError, match=r"ant/1.png can't be read"):
        load(str(tmp_path)).train[1]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_of_grey_become_eight(ending: str, tmp_path: Path) -> None:
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(path := tmp_path / f"grey.{ending}")
    image, _ = Images([(path, 0), (grey, 0)], 1)[0]
    assert np.array_equal(np.asarray(image)[..., 0], grey // 257)
    assert image == Images([(path, 0), (grey, 0)], 1)[1][0]


@pytest.mark.parametrize(("kind", "words"), [(np.float32, "floating-point numbers"), (np.int32, "numbers of 32 bits")])
def test_an_image_is_refused_where_nothing_says_what_is_white(kind: type, words: str, tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=kind)).save(path := tmp_path / "a.tif")
    with pytest.raises(BadImageError, match=f"a.tif can't be read .* {words}, .* save it with 8 or 16 bits"):
        Images([(path, 0)], 1)[0]


def test_a_damaged_dds_can_be_skipped_too(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path := tmp_path / "a.dds")
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)  # what kind of pixels there are; Pillow answers with NotImplementedError
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=r"a.dds can't be read as an image"):
        Images([(path, 0)], 1)[0]
