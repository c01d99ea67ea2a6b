"""ImageNet's reassessed labels, on images named as its validation images are."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import RealLabelsImagenet

from downmix.cli import main
from downmix.train import validate as validation
from downmix.train.images import DataError
from tests.tiny_networks import TinyNet

from .helpers import quick_recipe

DARK, BRIGHT, JUNK = 0, 255, None


def write_data(root: Path, images: list[tuple[str, int | None]]) -> None:
    """Six classes; held-out images with the given class folders and brightness, and numbers as ImageNet's have."""
    for name in "abcdef":
        for part in ("train", "val"):
            (root / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "train" / name / "0.png")
    for number, (name, brightness) in enumerate(images, 1):
        path = root / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG"
        if brightness is None:
            path.write_bytes(b"junk")
        else:
            Image.new("RGB", (8, 8), (brightness,) * 3).save(path)


def write_checkpoint(path: Path, recipe: Any) -> None:
    """A network for which dark images are 0, then 1, 2, 3, 4 and 5, and bright ones the other way round."""
    network: Any = timm.create_model("tiny_plain", num_classes=6)
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    state["first.weight"][0, 0, 1, 1] = 1  # red, which is below zero in dark images, and then cut off
    state["fc.weight"][:, 0] = 10 * torch.arange(6.0)
    state["fc.bias"] = -torch.arange(6.0)
    torch.save({"model": state, "ema": None, "recipe": asdict(recipe)}, path)


def test_real_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Held-out images are read by class folder, two a batch: 4 and 7, 5 and 1, 6 and 8, 2 and 3.
    names = [("c", BRIGHT), ("e", BRIGHT), ("f", DARK), ("a", DARK), ("b", DARK), ("c", JUNK), ("a", DARK), ("d", JUNK)]
    write_data(tmp_path / "data", names)
    # Number 1 is hit at once, 2 later, 3 at once by one of two, 4 not, 5 has none, 6 and 8 can't be read, 7 later.
    labels = [[5], [1], [3, 0], [5], [], [0], [2, 5], [0]]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    monkeypatch.setattr(validation, "RealLabelsImagenet", partial(RealLabelsImagenet, real_json=tmp_path / "real.json"))
    recipe = quick_recipe(tmp_path / "data", model="tiny_plain", batch_size=2, on_bad_image="skip")
    write_checkpoint(tmp_path / "last.pt", recipe)
    metrics = validation.validate(str(tmp_path / "last.pt"), real_labels=True)
    assert (metrics["real_top1"], metrics["real_top5"]) == (2 / 5, 4 / 5)
    shown = " ".join(capsys.readouterr().err.split())
    assert [shown.count(f"val_{number:08d}.JPEG can't be read") for number in (5, 6, 8)] == [0, 1, 1]
    (tmp_path / "real.json").write_text(json.dumps([[] for _ in labels]))
    with pytest.raises(DataError, match="none of the 8 images can be read and has a real label"):
        validation.validate(tmp_path / "last.pt", real_labels=True)


def test_one_image_a_batch_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "data", [(name, DARK) for name in "abcdef"])
    write_checkpoint(tmp_path / "last.pt", quick_recipe(tmp_path / "data", model="tiny_plain", mixup=0.5))
    expected = validation.validate(tmp_path / "last.pt")
    assert expected["top1"] == pytest.approx(1 / 6)
    assert validation.validate(tmp_path / "last.pt", batch_size=1) == pytest.approx(expected)
    main(["validate", str(tmp_path / "last.pt"), "--batch_size", "1"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == pytest.approx(expected)
    assert f"evaluating 6 held-out images of {tmp_path / 'data'}" in printed.err


def test_a_folder_called_as_a_set_hides_no_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "data", [(name, DARK) for name in "abcdef"])
    recipe = quick_recipe("cifar10", data_dir=str(tmp_path / "data"), model="tiny_plain")
    write_checkpoint(tmp_path / "last.pt", recipe)
    (tmp_path / "cifar10").mkdir()
    monkeypatch.chdir(tmp_path)
    assert validation.validate(tmp_path / "last.pt", data="cifar10")["top1"] == pytest.approx(1 / 6)


def test_a_network_for_other_images_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("Input height (8) doesn't match model (224).")

    write_data(tmp_path / "data", [(name, DARK) for name in "abcdef"])
    write_checkpoint(tmp_path / "last.pt", quick_recipe(tmp_path / "data", model="tiny_plain"))
    monkeypatch.setattr(TinyNet, "forward", refuse)
    with pytest.raises(
        ValueError, match=r"^tiny_plain can't process images of 8×8 pixels: Input height .8. doesn't match"
    ):
        validation.validate(tmp_path / "last.pt")
    with pytest.raises(ValueError, match="weights must be one of 'auto', 'model', 'ema', got 'best'"):
        validation.validate(tmp_path / "last.pt", weights="best")
