import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from downmix import PiX, convert_like
from downmix.cli import main
from tests.refused import refused

SMALL = ["convert", "resnet29_small", "--input", "3", "32", "32"]
FILE = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.MaxPool2d(2))

def empty():
    return network().to("meta")

def number():
    return 3

def weights():
    return {}["layer1"]

size = 3
"""


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_prints_and_writes_nothing(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", "resnet50", "--pool", "soft", "--min_reduction=1", flag, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "17 of 38 layers replaced" in printed
    (row,) = (line for line in printed.splitlines() if "GMACs" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["GMACs", "4.122", "3.188", "0.774"]
    assert not (tmp_path / "out").exists()


def test_writes_what_rebuilds_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--where", "layer1.*", "layer4.1.*", "--output", str(tmp_path)])
    assert f"results: {tmp_path}/convert.json, model.safetensors" in capsys.readouterr().out
    config = json.loads((tmp_path / "convert.json").read_text())
    network = convert_like(timm.create_model(config["network"]), config)
    assert [name for name, module in network.named_modules() if isinstance(module, PiX)] == [
        "layer1.0.conv1",
        "layer1.1.conv1",
        "layer4.1.conv1",
    ]
    safetensors.torch.load_model(network, tmp_path / "model.safetensors")
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(network.layer4[1].conv1.weight, saved["layer4.1.conv1.weight"])


def test_a_network_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    name = f"{tmp_path / 'mine.py'}:network"
    main(["convert", name, "--squeeze=none", "--pool=soft", "--input", "3", "32", "32", "--dry-run"])
    printed = capsys.readouterr().out
    assert "SoftPool2d" in printed
    assert "PiX" not in printed


def test_a_network_without_weights_can_be_tried_but_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    words = ["convert", f"{tmp_path / 'mine.py'}:empty", "--input", "3", "32", "32", "--output", str(tmp_path / "out")]
    refused(words, "mine.py:empty has weights on the meta device, and they can't be saved; load them before", capsys)
    assert not list((tmp_path / "out").iterdir())
    main([*words, "--dry-run"])
    assert "1 of 1 layers replaced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet51"], "there is no network 'resnet51'"),
        (["resnet18", "--pool", "hard"], "invalid choice: 'hard'"),
        (["resnet18", "--squeeze", "none"], "give squeeze, pool or both"),
        (["resnet18", "--where", "layer9.*"], "where='layer9.\\*' matches no module"),
        (["resnet18", "--input", "4", "64", "64"], r"ResNet can't run on an example input of \[1, 4, 64, 64\]"),
        (["FOLDER/nothing.py:network"], "there is no file .*nothing.py"),
        (["FOLDER/mine.py:other"], "mine.py defines no function other; give FILE.py:FUNCTION"),
        (["FOLDER/mine.py:size"], "mine.py defines no function size; give FILE.py:FUNCTION"),
        (["FOLDER/mine.py:weights"], "weights in .*mine.py fails with KeyError: 'layer1'"),
        (["FOLDER/broken.py:network"], "broken.py fails with SyntaxError: invalid syntax"),
        (["FOLDER/mine.py:number"], "number in .*mine.py must return an nn.Module, got int"),
        (["FOLDER/mine.py"], "give FILE.py:FUNCTION"),
        (["FOLDER/mine.py:network", "--pretrained"], "--pretrained loads weights that timm has"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("def network(:")
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    refused(["convert", *arguments, "--dry-run"], sentence, capsys)
