import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from downmix.train import train
from downmix.train.classification import Classification, evaluation_transform, training_transform
from downmix.train.data import EvaluationBatches, TrainingBatches, close
from downmix.train.data import create_training_loader as create_loader
from downmix.train.distributed import World
from downmix.train.evaluation import normalized
from downmix.train.images import DataError, Images, ImageStream
from downmix.train.sources import Split, load_data

from .helpers import make_folders, quick_recipe, run

CPU = torch.device("cpu")


def world(rank: int, size: int) -> World:
    return World(CPU, rank, size)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 12, 25])
def test_evaluation_sees_each_sample_once_over_all_processes(count: int, size: int) -> None:
    parts = [EvaluationBatches(count, quick_recipe("x", batch_size=4), world(rank, size)) for rank in range(size)]
    assert sorted(index for part in parts for batch in part for _, index in batch) == list(range(count))
    assert all(len(list(part)) == len(part) <= part.rounds for part in parts)


def test_processes_together_see_what_one_with_their_batch_sees() -> None:
    alone = list(TrainingBatches(50, quick_recipe("x", batch_size=8), world(0, 1)))
    assert len(alone) == 6
    parts = [list(TrainingBatches(50, quick_recipe("x", batch_size=4), world(rank, 2))) for rank in range(2)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert sorted(whole) == sorted(key for share in shares for key in share)
    twice = list(TrainingBatches(50, quick_recipe("x", batch_size=4, accumulate=2), world(0, 1)))
    assert [key for batch in twice for key in batch] == [key for batch in alone for key in batch]


def test_the_order_is_another_in_each_epoch_and_can_start_anywhere() -> None:
    batches = TrainingBatches(50, quick_recipe("x", batch_size=8), world(0, 1))
    first = list(batches)
    batches.start = 4
    assert list(batches) == first[4:]
    batches.epoch, batches.start = 1, 0
    assert [index for _, index in next(iter(batches))] != [index for _, index in first[0]]


@pytest.mark.parametrize(("hflip", "reprob"), [(0.0, 0.0), (0.5, 0.0), (0.5, 1e-9)])  # bytes, or normalised already
def test_without_a_random_crop_training_sees_what_evaluation_does_or_its_mirror_image(
    hflip: float, reprob: float
) -> None:
    recipe = quick_recipe("x", image_size=8, crop_scale=1.0, hflip=hflip, reprob=reprob)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 30, 3), dtype=np.uint8))
    loaded, middle = [training_transform(recipe)(image) for _ in range(20)], evaluation_transform(recipe)(image)
    assert {each.dtype for each in loaded} == {torch.float32 if reprob else torch.uint8}
    seen = [normalized(each) for each in loaded]
    mirrored = [bool(torch.equal(each, middle.flip(2))) for each in seen]
    assert all(mirror or torch.equal(each, middle) for each, mirror in zip(seen, mirrored, strict=True))
    assert any(mirrored) == bool(hflip)


def test_a_border_lets_crops_move_by_its_width() -> None:
    recipe = quick_recipe("x", image_size=8, crop_padding=2)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    bordered = torch.nn.functional.pad(evaluation_transform(recipe)(image), (2, 2, 2, 2), value=torch.nan)
    black = normalized(training_transform(recipe)(Image.new("RGB", (8, 8))))[:, :1, :1]
    bordered = torch.where(bordered.isnan(), black, bordered)
    possible = [bordered[:, top : top + 8, left : left + 8] for top in range(5) for left in range(5)]
    for _ in range(20):
        seen = normalized(training_transform(recipe)(image))
        assert any(torch.equal(seen, each) for each in possible)


def test_a_sample_s_randomness_does_not_depend_on_who_loads_it(tmp_path: Path) -> None:
    make_folders(tmp_path, count=10)
    images = []
    for workers in (0, 2):
        recipe = quick_recipe(tmp_path, workers=workers, batch_size=8, crop_scale=0.3)
        loader, _ = create_loader(Classification(recipe).train_data, recipe, world(0, 1))
        state = torch.get_rng_state()
        images.append(torch.cat([batch.images for batch in loader]))
        assert torch.equal(torch.get_rng_state(), state)
        close(loader)
    assert torch.equal(*images)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_skipped_and_named_where_that_is_asked_for(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", count=20)
    (tmp_path / "data" / "bee" / "3.png").write_bytes(b"junk")
    (tmp_path / "data" / "ant" / "4.png").write_bytes(
        (tmp_path / "data" / "ant" / "4.png").read_bytes()[:60]
    )  # held out
    recipe = quick_recipe(tmp_path / "data", workers=workers, on_bad_image="skip", epochs=2)
    run(recipe, tmp_path / "out")
    summary = (tmp_path / "out" / "summary.json").read_text()
    assert "bee/3.png can't be read" in summary
    assert "ant/4.png can't be read" in summary
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("bee/3.png can't be read") == 1
    assert "2 images could not be read" in shown
    run(recipe, tmp_path / "out", resume="auto")  # there is nothing left to do, or to read
    assert (tmp_path / "out" / "summary.json").read_text() == summary


def test_there_is_no_best_of_nothing(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train")
    for path in make_folders(tmp_path / "data" / "val", count=2).rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="no figures on the held-out samples: none of the images can be read"):
        train(quick_recipe(tmp_path / "data", on_bad_image="skip"), tmp_path / "out")
    assert not (tmp_path / "out" / "best.pt").exists()


def test_nothing_but_bad_images_stops(tmp_path: Path) -> None:
    for path in make_folders(tmp_path, count=30).rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="20 images in a row can't be read, the last one: .*png"):
        train(quick_recipe(tmp_path, on_bad_image="skip"))


def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(DataError, match="image 1 has the label 7, but there are 2 classes, 0 to 1"):
        Images([(torch.zeros(8, 8, 3).byte().numpy(), 0), (torch.zeros(8, 8, 3).byte().numpy(), 7)], 2)[1]


class Shards(IterableDataset[Any]):
    """What timm's streams look like: an epoch, a length that is an estimate, images in the order they come."""

    transform: Any = None

    def __init__(self, count: int, said: int, label: int = 1):
        self.count, self.said, self.label, self.epochs = count, said, label, []

    def __len__(self) -> int:
        return self.said

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Any:
        for i in range(self.count):
            yield self.transform(Image.new("RGB", (8, 8), (i, 99, 0))), self.label if i % 2 else 0


def test_streams_train_too_and_begin_again_where_they_end_early() -> None:
    recipe = quick_recipe("stream", epochs=2)
    shards = Shards(20, said=32)
    task = Classification(recipe, Split(ImageStream(shards, 2), ImageStream(Shards(9, 9), 2), ["a", "b"]))
    steps: list[int] = []
    history = train(recipe, task=task, on_step=lambda done, total: steps.append(done))
    assert steps == list(range(1, 9))
    assert shards.epochs == [0, 1]
    assert history[0].metrics.keys() == {"top1", "val_loss"}
    empty = Classification(recipe, Split(ImageStream(Shards(3, 32), 2), ImageStream(Shards(9, 9), 2), ["a", "b"]))
    with pytest.raises(DataError, match="gives no batch"):
        run(recipe, task=empty)
    wrong = Classification(
        recipe, Split(ImageStream(Shards(32, 32, label=5), 2), ImageStream(Shards(9, 9), 2), ["a", "b"])
    )
    with pytest.raises(DataError, match="image 1 of the stream has the label 5, but there are 2 classes"):
        run(recipe, task=wrong)


def test_every_process_reads_its_part_of_a_stream_to_its_end() -> None:
    stream = ImageStream(Shards(16, said=16), 2)  # of 32 over two processes, as timm tells the length
    assert [create_loader(stream, quick_recipe("x"), world(rank, 2))[1].steps for rank in range(2)] == [2, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_tar_files(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3)):
        make_folders(tmp_path / part, count=count)
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / f"{part}.tar", "w") as tar:
            tar.add(tmp_path / part, arcname=".")
    recipe = quick_recipe(tmp_path / "tars", workers=1)
    split = load_data(recipe)
    assert (len(split.train), len(split.test), split.class_names) == (16, 6, ["ant", "bee"])
    assert split.train[15][1] == 1
    (epoch,) = run(recipe)
    assert 0 <= epoch.metrics["top1"] <= 1
