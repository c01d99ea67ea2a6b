"""Segmentation through the engine: trained, interrupted, resumed, tested, drawn."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from downmix.train import Interrupted, Recipe, read_recipe, recipe_names, train
from downmix.train.distributed import World
from downmix.train.segmentation import Segmentation
from downmix.train.segmentation_recipe import SegmentationRecipe
from downmix.train.state import State
from downmix.train.validate import validate

from .helpers import run
from .test_resume import assert_same, final_state, interrupted_at


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark is a class, bright is another; the first rows are void, and a third class is nowhere."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for i in range(count):
            mask = np.zeros((36, 44 + 4 * (i == 1)), np.uint8)
            mask[:, draw.integers(10, 30) :] = 1
            image = 60 + 120 * mask[..., None] + draw.integers(0, 40, (*mask.shape, 3))
            mask[:4] = 9
            for kind, pixels in (("images", image), ("masks", mask)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / kind / f"{i}.png")
    return root


def recipe(data: Path, part: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    quick = {"model": "test_pix_resnet", "epochs": 1, "batch_size": 3, "device": "cpu"}
    given: Any = quick | {"task": "segmentation", "data_dir": str(data), "warmup_epochs": 0, "drop": 0.1} | fields
    segmentation = {"classes": ["dark", "bright", "none"], "void": 9, "crop": [32, 32], "pictures": 2}
    return Recipe(**given, segmentation=SegmentationRecipe(**(segmentation | (part or {}))))


def test_it_learns_and_is_tested(data: Path, tmp_path: Path) -> None:
    part = {"rotate": 10, "blur": 0.5, "scale": [0.7, 1.5]}
    history = run(recipe(data, part, epochs=8, lr=3e-3, hflip=0.5, sched="poly"), tmp_path)
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    assert history[-1].metrics["miou"] > 0.6  # all of one class has 0.25
    assert {"miou", "pixel_accuracy", "val_loss", "iou/dark", "iou/bright", "iou/none"} == history[-1].metrics.keys()
    tested = json.loads((tmp_path / "test.json").read_text())
    assert tested["miou"] > 0.6
    assert tested["iou/none"] is None
    assert tested["miou"] == pytest.approx((tested["iou/dark"] + tested["iou/bright"]) / 2)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize("step", [1, 3])
def test_resumed_it_ends_the_same(data: Path, step: int, tmp_path: Path) -> None:
    part = {"classes": ["dark", "bright"], "rotate": 10, "blur": 0.5}
    how = recipe(data, part, epochs=2, hflip=0.5, ema_decay=0.9)
    with pytest.raises(Interrupted):
        train(how, tmp_path / "broken", on_step=interrupted_at(step))
    run(how, tmp_path / "broken", resume="auto")
    run(how, tmp_path / "whole")
    assert_same(final_state(tmp_path / "broken"), final_state(tmp_path / "whole"))


def test_going_on_after_the_end_changes_no_figure(data: Path, tmp_path: Path) -> None:
    how = recipe(data, model="fbs_resnet18_d50", fbs_density=0.5, epochs=2, fbs_epochs=2)
    run(how, tmp_path)
    tested = (tmp_path / "test.json").read_text()
    run(how, tmp_path, resume="auto")
    assert (tmp_path / "test.json").read_text() == tested


def test_other_data_are_what_is_validated(data: Path, tmp_path: Path) -> None:
    run(recipe(data), tmp_path)
    shutil.copytree(data, other := tmp_path / "other")
    for folder in (other / "val").iterdir():
        (folder / "2.png").unlink()
    losses = [
        validate(tmp_path / "best.pt", **fields)["val_loss"]
        for fields in ({}, {"data": str(other)}, {"data_dir": str(other)})
    ]
    assert losses[0] != losses[1] == losses[2]


def test_another_image_is_drawn_where_one_is_left_out(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "test" / "images" / "1.png").write_bytes(b"junk")
    run(recipe(tmp_path / "data", on_bad_image="skip"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == ["0.png", "2.png"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_masks_that_are_void_alone(split: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / split / "masks").iterdir():
        Image.fromarray(np.full_like(Image.open(path), 9)).save(path)
    if split == "val":
        with pytest.raises(ValueError, match="no figures on the held-out samples: all pixels .* are void"):
            run(recipe(tmp_path / "data"))
        return
    run(recipe(tmp_path / "data"), tmp_path / "out")  # which is done by then, so that it stands
    assert "no figures on the test samples: all pixels of the evaluated images are void" in capsys.readouterr().err
    assert not (tmp_path / "out" / "test.json").exists()


@pytest.mark.parametrize(
    ("encoder", "squeeze", "first", "stage"),
    [
        ("resnet26:layers=(1,1,1,1)", "pix", ("conv1", "bn1"), "layer{}"),  # brings layers that timm knows nothing of
        # not its own names, and no squeezes
        ("convnext_atto:depths=(1,1,1,1),dims=(8,8,8,8)", "none", ("stem_0", "stem_1"), "stages_{}"),
    ],
)
def test_the_lower_layers_of_the_encoder_learn_more_slowly(
    encoder: str, squeeze: str, first: tuple[str, ...], stage: str, data: Path
) -> None:
    how = recipe(data, model=encoder, layer_decay=0.5, squeeze=squeeze)
    model: Any = Segmentation(how).create_model()
    groups = State(model, how, World(torch.device("cpu")), steps=1, global_batch=3).optimizer.param_groups
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        place = name.split(".")[3] if name.startswith("network.encoder.model.") else "head"
        found.setdefault(place, set()).add(scales[id(parameter)])
    start = int(stage == "layer{}")
    stages = {stage.format(i + start): {0.5 ** (4 - i)} for i in range(4)}
    assert found == {place: {0.5**5} for place in first} | stages | {"head": {1.0}}


def test_layers_of_the_encoder_are_replaced(data: Path) -> None:
    how = recipe(data, model="resnet26:layers=(1,1,1,1)", squeeze="pix", pool="soft", drop_path=0.1)
    model: Any = Segmentation(how).create_model()
    kinds = [type(module).__name__ for module in model.network.encoder.modules()]
    assert "SoftPool2d" in kinds
    assert "PiX" in kinds
    assert "PiX" not in [type(module).__name__ for module in model.network.decoder.modules()]


def test_the_encoder_starts_from_a_classifier(data: Path, tmp_path: Path) -> None:
    classifier = timm.create_model("test_pix_resnet", num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    model: Any = Segmentation(recipe(data, init=str(tmp_path / "classifier.pt"))).create_model()
    assert torch.equal(model.network.encoder.model.conv1.weight, classifier.conv1.weight)
    torch.save(model.state_dict(), tmp_path / "segmentation.pt")
    two = {"classes": ["dark", "bright"]}
    other: Any = Segmentation(recipe(data, two, init=str(tmp_path / "segmentation.pt"))).create_model()
    assert torch.equal(other.auxiliary[0].weight, model.auxiliary[0].weight)
    del (state := classifier.state_dict())["conv1.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match="missing: conv1.weight$"):
        Segmentation(recipe(data, init=str(tmp_path / "less.pt"))).create_model()


@pytest.mark.parametrize(
    ("encoder", "part", "theirs", "its"),
    [
        ("test_convnext", {}, "stages.3.", "stages_3."),
        ("test_pix_vgg", {"output_stride": 32}, "features.3.", "features_3."),
        ("test_pix_mobilenetv2", {}, "blocks.3.", "blocks_3."),
        ("test_efficientnet", {}, "blocks.3.", "blocks.3."),  # whose last convolution is no part of the encoder
    ],
)
def test_an_encoder_with_names_of_its_own_starts_from_a_classifier(
    encoder: str, part: dict[str, Any], theirs: str, its: str, data: Path, tmp_path: Path
) -> None:
    classifier = timm.create_model(encoder, num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    model: Any = Segmentation(recipe(data, part, model=encoder, init=str(tmp_path / "classifier.pt"))).create_model()
    state = model.network.encoder.model.state_dict()
    found = {name.replace(theirs, its, 1): value for name, value in classifier.state_dict().items() if theirs in name}
    assert found
    for name, value in found.items():
        assert torch.equal(state[name], value)


@pytest.mark.parametrize("field", [{"mixup": 0.2}, {"aa": "rand-m7"}, {"bce_loss": True}])
def test_what_only_classification_does_is_refused(field: dict[str, Any], data: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))} is for classification alone"):
        Segmentation(recipe(data, **field, batch_size=2))


def test_recipes_that_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="needs the names of its classes; give segmentation.classes"):
        Segmentation(recipe(data, {"classes": []}))
    for part, message in (
        ({"crop": [32]}, r"crop must be a height and a width .* got \[32\]"),
        ({"scale": [2.0, 0.5]}, "scale must be a smallest and a largest factor"),
        ({"window": [4, 4]}, "window must be"),
        ({"rotate": -1}, "rotate must be 0 to 180"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"pictures": -1}, "can't be negative"),
        ({"classes": ["a", "a"]}, "each class needs a name of its own"),
        ({"classes": ["a", "b"], "colours": ["red"]}, "2 classes have 1 colours"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(data, part)
    with pytest.raises(ValueError, match="segmentation must hold lines"):
        SegmentationRecipe.of(3)  # type: ignore[arg-type]


def test_a_recipe_s_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: segmentation\nsegmentation:\n  viod: 3\n")
    with pytest.raises(ValueError, match="segmentation has no field 'viod'; did you mean void"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_the_recipes_that_come_along() -> None:
    parts = {name: Recipe(**read_recipe(name)) for name in recipe_names() if name.endswith("_pspnet")}
    assert {name: len(each.segmentation.classes) for name, each in parts.items()} == {
        "camvid_pspnet": 11,
        "cityscapes_pspnet": 19,
    }


def test_without_the_package_that_it_needs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ImportError, match=r"needs more packages .*: pip install 'downmix\[segment\]'"):
        run(recipe(data))
