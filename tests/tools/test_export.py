import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import nn

import downmix
from downmix.cli import main
from downmix.export import load, write
from downmix.tools.export import export


@pytest.fixture(autouse=True)
def _without_kernels() -> Any:
    with downmix.use_backend("reference"):
        yield


def test_the_command_writes_a_checkpoint_checks_it_and_keeps_its_facts(tmp_path: Path, capsys: Any) -> None:
    network = timm.create_model("test_pix_resnet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "classes.txt").write_text("ape\nbee\ncat\n")
    Image.new("RGB", (80, 70), (200, 30, 90)).save(tmp_path / "photo.png")
    output = tmp_path / "net.onnx"
    words = ["export", "test_pix_resnet", "--checkpoint", str(tmp_path / "weights.pth"), "--output", str(output)]
    main([*words, "--classes", str(tmp_path / "classes.txt"), "--images", str(tmp_path / "photo.png")])
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 PiX layers regrouped" in said
    assert "random images: ONNX Runtime" in said
    assert "real images: ONNX Runtime" in said
    exported = load(output, threads=1)
    facts = {"classes": ["ape", "bee", "cat"], "input_size": [3, 64, 64], "std": [0.229, 0.224, 0.225]}
    assert {name: json.loads(exported.metadata[name]) for name in facts} == facts
    assert exported.metadata["downmix"] == downmix.__version__
    script = Path(__file__).parents[2] / "docs" / "classify.py"
    photo = Image.effect_noise((90, 71), 80).convert("RGB")  # its gray is the same in all channels
    photo.save(tmp_path / "photo.png")
    run = [sys.executable, str(script), str(output), str(tmp_path / "photo.png")]
    answer = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    config = timm.data.resolve_data_config({}, model=network)
    with torch.no_grad():
        scores = network.eval()(timm.data.create_transform(**config)(photo)[None]).softmax(1)[0]
    best = int(scores.argmax())
    assert answer == f"{tmp_path / 'photo.png'}: {('ape', 'bee', 'cat')[best]} ({scores[best]:.3f})\n"
    images = torch.randn(4, 3, 64, 64)
    expected = network.eval()(images).detach()
    torch.testing.assert_close(torch.from_numpy(exported.run(images.numpy())), expected, rtol=1e-4, atol=1e-5)


def test_float16_and_a_fixed_batch(tmp_path: Path) -> None:
    network = timm.create_model("test_pix_vgg", num_classes=3)
    found = export(network, tmp_path / "net.onnx", dynamic=(), dtype="float16", name="test_pix_vgg")
    assert 0 < found["random"] < 0.03
    exported = load(tmp_path / "net.onnx", threads=1)
    assert exported.dtype == "float16"
    with pytest.raises(Exception, match="Expected: 2"):
        exported.run(torch.zeros(3, 3, 64, 64).half().numpy())


def test_a_file_that_computes_something_else_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("test_pix_resnet", num_classes=3)

    def regroup_wrongly(network: Any, images: Any) -> Any:
        broken = timm.create_model("test_pix_resnet", num_classes=3).eval()
        return broken, []

    monkeypatch.setattr("downmix.tools.export.regroup", regroup_wrongly)
    with pytest.raises(ValueError, match="other logits than the network on random images"):
        export(network, tmp_path / "net.onnx", name="test_pix_resnet")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["test_pix_resnet", "--output", "a.xml"], "ends in .onnx, got a.xml"),
        (["test_pix_resnet", "--format", "tflite"], "tflite"),
        (["no_such_net"], "there is no network"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", *words])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_bench_times_exported_files_in_turns(tmp_path: Path, capsys: Any) -> None:
    for name, classes in (("one.onnx", 3), ("two.onnx", 4), ("one.xml", 3)):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)).eval()
        write(network, torch.zeros(2, 3, 8, 8), tmp_path / name, "openvino" if name.endswith("xml") else "onnx")
    files = [str(tmp_path / name) for name in ("one.onnx", "one.xml", "two.onnx")]
    options = ["--batch_sizes", "1", "3", "--image_size", "8", "--rounds", "3", "--threads", "1"]
    main(["bench", "--exported", *files, *options, "--output", str(tmp_path / "bench.csv")])
    assert "Exported networks" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert [(row["file"], row["batch_size"]) for row in rows] == [
        *(("one.onnx", "1"), ("two.onnx", "1"), ("one.onnx", "3"), ("two.onnx", "3")),
        *(("one.xml", "1"), ("one.xml", "3")),
    ]
    for row in rows:
        assert row["threads"] == "1"
        assert 0 < float(row["min_ms"]) <= float(row["median_ms"])
        assert float(row["min_ratio"]) == 1 or row["file"] != row["baseline"]


@pytest.mark.parametrize("words", [[], ["resnet18", "--exported", "a.onnx"]])
def test_bench_takes_networks_or_files(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *words])
    assert "not both" in capsys.readouterr().err
