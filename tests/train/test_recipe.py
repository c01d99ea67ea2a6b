import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import downmix
from downmix.models._networks import create_network
from downmix.tools.compare import compare
from downmix.train import Recipe, read_recipe, recipe_names
from downmix.train.network import build_network
from downmix.train.segmentation_recipe import SegmentationRecipe
from tests.refused import refused

from .helpers import quick_recipe, run


def test_recipes_come_with_the_package_and_hold_good_fields() -> None:
    assert {"digits", "pix_paper_imagenet", "pix_readme_imagenet"} <= set(recipe_names())
    for name in recipe_names():
        Recipe(**read_recipe(name))


ANY_LOCALE = r"""
import sys
from pathlib import Path
from downmix.tools._report.page import render
from downmix.tools._results import read_rows, write_rows
from downmix.tools._trained import read_class_names
from downmix.train import read_recipe

file = Path(sys.argv[1])
file.write_bytes("data: v\u00f6gel\n".encode())
assert read_recipe(str(file)) == {"data": "v\u00f6gel"}
assert read_class_names(file) == ["data: v\u00f6gel"]
write_rows(file, [{"data": "v\u00f6gel"}])
assert read_rows(file) == [{"data": "v\u00f6gel"}]
render("v\u00f6gel", "", [], [])
"""


def test_files_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # ASCII here, as cp1252 on Windows
    command = [sys.executable, "-c", ANY_LOCALE, str(tmp_path / "file.yaml")]
    subprocess.run(command, env=os.environ | locale, check=True)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"crop_scale": 2.0}, "crop_scale must be between 0 and 1, got 2.0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"crop_pct": 0.0}, "crop_pct must be positive, got 0.0"),
        ({"decay_milestones": [30, 30]}, r"decay_milestones must be epochs in rising order, got \[30, 30\]"),
        ({"sched": "plateau"}, "sched must be one of 'constant', 'cosine', .* got 'plateau'"),
        ({"interpolation": "box"}, "interpolation must be one of 'bilinear', .*, 'random', got 'box'"),
        (
            {"sched": "rsqrt", "warmup_epochs": 0},
            "sched rsqrt falls as slowly .*; warmup_epochs must be at least 1, got 0",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"clip_grad": float("nan")}, "clip_grad must be at least 0, got nan"),
        ({"data": ""}, "data is empty; name what is meant, or leave it out"),
        ({"init": ""}, "init is empty; name what is meant, or leave it out"),
        ({"lr": float("inf")}, "lr must be a finite number, got inf"),
        ({"aa": "foo"}, r"aa must be in timm's words, such as rand-m7.*, got 'foo' \(Unknown AA policy"),
        ({"aa": "random"}, "aa must be in timm's words, .*, got 'random'"),
        ({"smoothing": 1.0, "bce_loss": True}, "smoothing must be below 1 with bce_loss"),
        ({"opt": "adahessian"}, "opt adahessian needs second derivatives"),
        ({"opt": "sgd", "momentum": 0.0}, "opt sgd is Nesterov's, which needs momentum above 0; .* opt momentum"),
        ({"opt": "lookahead_sdg"}, "opt must be an optimiser of timm, got 'lookahead_sdg'"),
        ({"opt": "lookahed_sgd"}, "opt must be an optimiser of timm, got 'lookahed_sgd'"),  # timm takes sgd for it
        ({"convert": "convert.json", "squeeze": "pix"}, "convert repeats a conversion .*; leave squeeze and pool out"),
        ({"seed": 99999999999999999999}, "seed must be between -4294967296 and 4294967296, got 9999"),
    ],
)
def test_a_bad_field_is_named(field: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 1}, "BatchNorm needs .*; batch_size must be at least 2 in training, got 1"),
        ({"batch_size": 9, "mixup": 0.1}, "batch_size must be even, got 9"),
        (
            {"sched": "tanh", "epochs": 20, "warmup_epochs": 19},
            "sched tanh warms up .*; warmup_epochs must be at most 0.9 × epochs = 18.0, got 19",
        ),
    ],
)
def test_a_recipe_that_can_only_evaluate_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = quick_recipe("x", **fields)
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        compare("tiny_plain", ["tiny_net"], recipe, seeds=[0], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"epochs": None}, "epochs must be a whole number, got None"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"log_every": True}, "log_every must be a whole number, got True"),
        ({"lr": "high"}, "lr must be a number, got 'high'"),
        ({"init": 3}, "init must be text or null, got 3"),
        ({"amp": 16}, "amp must be one of 'none', .*, got 16"),
        ({"pretrained": 1}, "pretrained must be true or false, got 1"),
        ({"segmentation": None}, "segmentation must be lines of `field: value`, got None"),
        ({"segmentation": {"crop": 5}}, "segmentation.crop must be a list, each of which is a whole number, got 5"),
        ({"segmentation": {"rotate": "x"}}, "segmentation.rotate must be a number, got 'x'"),
        ({"segmentation": {"scale": ["x", "y"]}}, r"segmentation.scale must be a list, .* a number, got \['x', 'y'\]"),
        ({"segmentation": {"classes": 3}}, "segmentation.classes must be a list, each of which is text, got 3"),
        ({"segmentation": {"void": "x"}}, "segmentation.void must be a whole number or null, got 'x'"),
    ],
)
def test_a_field_of_another_type_is_named(field: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Recipe(**field)


def test_numbers_of_numpy_are_numbers_too() -> None:
    fields: Any = {"epochs": np.int64(3), "lr": np.float64(0.5), "decay_milestones": [np.int64(2)]}
    recipe = Recipe(**fields, segmentation=SegmentationRecipe(crop=[np.int64(8), np.int64(9)]))  # type: ignore[list-item]
    written = yaml.safe_load(yaml.safe_dump(asdict(recipe)))
    assert (written["epochs"], written["lr"], written["decay_milestones"]) == (3, 0.5, [2])
    assert written["segmentation"]["crop"] == [8, 9]


def test_optimisers_that_need_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(opt="bnbsgd", device="cpu")
    with pytest.raises(ValueError, match="opt bnbsgd computes on CUDA devices alone, and device is cpu"):
        recipe.check_training()
    assert recipe.torch_device().type == "cpu"  # to evaluate there what it has trained
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    Recipe(opt="bnbsgd").check_training()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: null", "mine.yaml can't be used: epochs must be a whole number, got None"),
        ("lr: .nan", "mine.yaml can't be used: lr must be a finite number, got nan"),
        ("segmentation: {crop: 5}", "mine.yaml can't be used: segmentation.crop must be a list"),
        ("lr: 5\nepochs: 2\nlr: 6", "mine.yaml can't be read: line 3 gives lr again; leave one out"),
        ("segmentation: {void: 1, void: 2}", "mine.yaml can't be read: line 1 gives void again"),
        ("lr: 2026-13-01", "mine.yaml can't be read: month must be in 1..12"),
        ("convert: nowhere.json", "mine.yaml can't be used: .*No such file or directory: 'nowhere.json'"),
    ],
)
def test_a_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_numbers_with_an_exponent_need_no_point(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 1e-3\nmin_lr: 1.E-5\ndata: 3e\nmodel: e3\n")
    found = read_recipe(str(tmp_path / "mine.yaml"))
    assert found == {"lr": 0.001, "min_lr": 0.00001, "data": "3e", "model": "e3"}


@pytest.mark.parametrize("content", [b"layers", b"\x80\x04", b"[]", b'{"epochs": 2}'])
def test_a_file_that_is_no_conversion_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ValueError, match="other.json is no convert.json of `downmix convert`"):
        Recipe(convert=str(tmp_path / "other.json"))


def test_a_recipe_holds_the_conversion_itself(tmp_path: Path) -> None:
    _, report = downmix.convert(create_network("test_resnet"), example_input=torch.zeros(1, 3, 64, 64))
    path = tmp_path / "convert.json"
    path.write_text(json.dumps(report.config))
    given = asdict(Recipe(model="test_resnet", convert=str(path)))
    path.unlink()
    recipe = Recipe(**yaml.safe_load(yaml.safe_dump(given)))
    assert recipe.convert == report.config
    network = build_network(recipe, num_classes=2)
    assert sum(isinstance(module, downmix.PiX) for module in network.modules()) == len(report.config["layers"])


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "cuda:x"])
def test_an_unknown_device_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be cpu, cuda, cuda:N or auto, got '{device}'"):
        Recipe(device=device).torch_device()


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Recipe(device="cuda:1").torch_device() == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device 'cuda:2' was asked for, but torch sees 2 CUDA devices, .* cuda:1$"):
        Recipe(device="cuda:2").torch_device()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "cifar"], "there is no recipe 'cifar'; give the path of a YAML file, or camvid_pspnet"),
        (["--recipe", 300 * "a"], "there is no recipe 'aaa"),
        (["--recipe", "FILE"], r"unknown field 'epohcs'; did you mean epochs\?"),
        (["--epohcs", "3"], r"did you mean --epochs\?"),
        (["--model", "pix_resnet29_smal"], "did you mean pix_resnet29_small"),
        (["--opt", "sdg"], "opt must be an optimiser of timm, got 'sdg'"),
        (["--init", "nowhere.pt"], r"nowhere\.pt"),
        (["--model", "vgg11", "--grad_checkpointing", "true"], "vgg11 can't recompute activations"),
        (["--model", "vgg_small", "--squeeze", "pix"], "vgg_small: squeeze=pix replaces nothing: it has none"),
        (["--resume", "autp"], r"there is no checkpoint autp; --resume takes auto, or the path of a \.pt file"),
    ],
)
def test_the_command_answers_in_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("epohcs: 3\n")
    arguments = [word.replace("FILE", str(tmp_path / "recipe.yaml")) for word in arguments]
    refused(["train", *arguments, "--output", str(tmp_path / "out")], sentence, capsys)
