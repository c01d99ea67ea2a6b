import csv
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import ExifTags, Image, ImageOps
from torch import nn

import downmix
from downmix.cli import main
from downmix.export import load, write
from downmix.tools._trained import trained_network
from downmix.tools.export import export
from downmix.train import Recipe, train
from downmix.train.classification import evaluation_transform
from downmix.train.sources import load_data
from tests.refused import refused


def test_the_command_writes_a_checkpoint_checks_it_and_keeps_its_facts(tmp_path: Path, capsys: Any) -> None:
    network = timm.create_model("test_pix_resnet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "classes.txt").write_text("ape\nbee \ncat\n\n")
    Image.new("RGB", (80, 70), (200, 30, 90)).save(tmp_path / "photo.png")
    output = tmp_path / "net.onnx"
    words = ["export", "test_pix_resnet", "--checkpoint", str(tmp_path / "weights.pth"), "--output", str(output)]
    main([*words, "--classes", str(tmp_path / "classes.txt"), "--images", str(tmp_path / "photo.png"), "--benchmark"])
    shown = capsys.readouterr().out
    assert re.search(r"^random images: ONNX Runtime .* of the largest logit$", shown, re.MULTILINE)
    said = " ".join(shown.split())
    assert re.search(r"ONNX Runtime \S+ │ 8 │ test_resnet.onnx │ .* ONNX Runtime \S+ │ 8 │ net.onnx │ ", said)
    assert "4 of 4 PiX layers regrouped" in said
    assert "the weights are random" not in said
    assert "real images: ONNX Runtime" in said
    exported = load(output, threads=1)
    facts = {"classes": ["ape", "bee", "cat"], "input_size": [3, 64, 64], "std": [0.229, 0.224, 0.225]}
    assert {name: json.loads(exported.metadata[name]) for name in facts} == facts
    assert exported.metadata["downmix"] == downmix.__version__
    images = torch.randn(4, 3, 64, 64)
    expected = network.eval()(images).detach()
    torch.testing.assert_close(torch.from_numpy(exported.run(images.numpy())), expected, rtol=1e-4, atol=1e-5)


# None in sys.modules makes an import fail, as if the package were missing.
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules |= dict.fromkeys(('torch', 'torchvision', 'timm', 'downmix', 'openvino')); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def test_from_training_on_digits_to_photos_classified_without_torch(tmp_path: Path) -> None:
    """The walk-through of docs/export.md, with a smaller network and preprocessing that no network has by itself."""
    recipe = Recipe(model="tiny_pix_resnet", epochs=1, crop_pct=0.7, interpolation="bicubic", device="cpu")
    train(recipe, tmp_path / "run")
    output = tmp_path / "digits.onnx"
    photos = save_photos(tmp_path)
    main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(output), "--images", *photos])
    script = str(Path(__file__).parents[2] / "docs" / "classify.py")
    command = [sys.executable, "-c", WITHOUT_TORCH, script, str(output), *photos]
    answers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    network, transform = trained_network(None, tmp_path / "run" / "best.safetensors"), evaluation_transform(recipe)
    names = runpy.run_path(script)
    facts = names["read_facts"](onnxruntime.InferenceSession(output))
    assert facts["classes"] == [str(digit) for digit in range(10)]
    found = set()
    for photo, answer in zip(photos, answers, strict=True):
        images = transform(Image.open(photo).convert("RGB"))[None]
        np.testing.assert_allclose(names["prepare"](photo, facts), images.numpy(), rtol=0, atol=1e-6)
        with torch.no_grad():
            scores = network(images).softmax(1)[0]
        best = int(scores.argmax())
        path, name, score = re.fullmatch(r"(.*): (\d) \((.*)\)", answer).groups()  # type: ignore[union-attr]
        assert (path, name) == (photo, str(best))
        assert float(score) == pytest.approx(float(scores[best]), abs=1e-3)
        found.add(name)
    assert len(found) > 1


def save_photos(folder: Path) -> list[str]:
    """Held-out digits in grey as they are, and larger, tinted and not square."""
    photos = []
    for number, (pixels, _) in enumerate(load_data(Recipe()).test.items[:8]):  # type: ignore[attr-defined]
        photo = Image.fromarray(pixels)
        if number % 2:
            photo = ImageOps.colorize(photo.resize((33 + number, 41)), "navy", "orange")
        photos.append(str(folder / f"{number}.png"))
        photo.save(photos[-1])
    return photos


def test_random_weights_are_called_so(tmp_path: Path, capsys: Any) -> None:
    main(["export", "test_pix_resnet", "--output", str(tmp_path / "net.onnx")])
    assert "the weights are random" in capsys.readouterr().out


def test_float16_and_a_fixed_batch(tmp_path: Path) -> None:
    network = timm.create_model("test_pix_vgg", num_classes=3)
    found = export(network, tmp_path / "net.onnx", dynamic=(), dtype="float16", name="test_pix_vgg")
    assert 0 < found["random"] < 0.03
    exported = load(tmp_path / "net.onnx", threads=1)
    assert exported.dtype == "float16"
    with pytest.raises(Exception, match="Expected: 2"):
        exported.run(torch.zeros(3, 3, 64, 64).half().numpy())


def test_images_of_a_camera_held_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera stores what its sensor saw, and how to turn it."""
    upright, exif = Image.linear_gradient("L"), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    compared = []

    def compare(network: Any, run: Any, batches: list[torch.Tensor], dtype: str) -> tuple[float, float]:
        compared.append(batches)
        return 0.0, 0.0

    monkeypatch.setattr("downmix.tools.export._compare", compare)
    network = timm.create_model("test_pix_vgg", num_classes=3)
    files = [tmp_path / "upright.png", tmp_path / "turned.png"]
    export(network, tmp_path / "net.onnx", name="test_pix_vgg", images=files)
    _, (expected, found) = compared
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


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
        (["test_pix_resnet", "--output", "a.xml"], r"ends in \.onnx, got a\.xml"),
        (
            ["test_pix_resnet", "--dtype", "int8", "--format", "openvino", "--output", "a.onnx"],
            r"ends in \.xml, got a\.onnx",
        ),
        (["test_pix_resnet", "--dtype", "int8", "--format", "aoti"], "pass --format onnx or openvino, not aoti"),
        (["test_pix_resnet", "--format", "tflite"], "tflite"),
        (["no_such_net"], "there is no network"),
        (["vgg_small", "--image_size", "7"], "vgg_small can't be exported for images of 3×7×7: .*too small"),
        ([], "name a network, or give a checkpoint of `downmix train`"),
        (["vgg_small", "--image_size", "-1"], "image_size must be at least 1, got -1"),
        (["vgg_small", "--image_size", "0"], "image_size must be at least 1, got 0"),
        (["vgg_small", "--num_classes", "0"], "num_classes must be at least 1, got 0"),
        (["vgg_small", "--dtype", "int8", "--calibration_images", "0"], "calibration_images must be at least 1, got 0"),
        (["vgg_small", "--pretrained", "--checkpoint", "a.pt"], "give it with a name, without --checkpoint"),
        (["vgg_small", "--data", "digits"], "are for --dtype int8; leave them out of float32"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str, capsys: Any) -> None:
    refused(["export", *words], sentence, capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--images", "no.png"], "there is no file no.png; give the path of a picture"),
        (["--benchmark", "no_such_net"], "there is no network 'no_such_net'"),
    ],
)
def test_nothing_is_written_where_an_image_or_the_baseline_is_missing(
    words: list[str], sentence: str, tmp_path: Path, capsys: Any
) -> None:
    refused(["export", "test_pix_vgg", "--output", str(tmp_path / "net.onnx"), *words], sentence, capsys)
    assert not (tmp_path / "net.onnx").exists()


def test_bench_times_exported_files_in_turns(tmp_path: Path, capsys: Any) -> None:
    for name, classes in (("one.onnx", 3), ("two.onnx", 4), ("one.xml", 3)):
        # Slow enough that milliseconds of two places tell it.
        layers = nn.Conv2d(3, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)
        network = nn.Sequential(*layers).eval()
        write(network, torch.zeros(2, 3, 64, 64), tmp_path / name, "openvino" if name.endswith("xml") else "onnx")
    files = [str(tmp_path / name) for name in ("one.onnx", "one.xml", "two.onnx")]
    options = ["--batch_sizes", "1", "3", "--image_size", "64", "--rounds", "3", "--threads", "1"]
    main(["bench", "--exported", *files, *options, "--output", str(tmp_path / "bench.csv")])
    said = capsys.readouterr().out
    assert "Exported networks" in said
    platform = next(line for line in said.splitlines() if "compute platform" in line)
    assert [word.strip() for word in platform.split("┃")[-3:-1]] == ["one", "two"]
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert [(row["file"], row["batch_size"]) for row in rows] == [
        *(("one.onnx", "1"), ("two.onnx", "1"), ("one.onnx", "3"), ("two.onnx", "3")),
        *(("one.xml", "1"), ("one.xml", "3")),
    ]
    for row in rows:
        assert row["threads"] == "1"
        assert 0 < float(row["min_ms"]) <= float(row["median_ms"])
        assert float(row["min_ratio"]) == 1 or row["file"] != row["baseline"]
        rounding = 0.006  # of milliseconds to two places
        ms = 1e3 * int(row["batch_size"]) / float(row["images_per_s"])
        assert ms == pytest.approx(float(row["median_ms"]), abs=rounding)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    files = ["old/net.onnx", "new/net.onnx"]
    for file in files:
        write(network, torch.zeros(2, 3, 8, 8), Path(file), "onnx", metadata={"input_size": "[3, 8, 8]"})
    options = ["--batch_sizes", "1", "--rounds", "2", "--output", "bench.csv"]
    main(["bench", "--exported", *files, *options])
    platform = next(line for line in capsys.readouterr().out.splitlines() if "compute platform" in line)
    assert [word.strip() for word in platform.split("┃")[-3:-1]] == ["old/net", "new/net"]
    rows = list(csv.DictReader(Path("bench.csv").read_text().splitlines()))
    assert [(row["file"], row["baseline"]) for row in rows] == [(file, "old/net.onnx") for file in files]
    assert [row["image_size"] for row in rows] == ["8", "8"]  # what the files say


@pytest.mark.parametrize("words", [[], ["resnet18", "--exported", "a.onnx"]])
def test_bench_takes_networks_or_files(words: list[str], capsys: Any) -> None:
    refused(["bench", *words], "not both", capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch_sizes", "1", "0"], r"must be at least 1, got \[1, 0\] and None"),
        (["--image_size", "0"], r"must be at least 1, got \[1, 8\] and 0"),
        (["--device", "cuda", "--modes", "training"], "leave out --modes, --device, which are for networks"),
        (["--against", "resnet18"], "run as they were written, on the CPU; leave out --against, which is for networks"),
    ],
)
def test_bench_refuses_what_files_do_not_take(words: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    write(network, torch.zeros(2, 3, 8, 8), tmp_path / "net.onnx", "onnx")
    refused(["bench", "--exported", str(tmp_path / "net.onnx"), "--rounds", "2", *words], sentence, capsys)


@pytest.mark.parametrize("words", [["export", "test_pix_resnet", "--output"], ["bench", "--exported"]])
def test_missing_packages_are_named(words: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "net.onnx").touch()
    refused([*words, str(tmp_path / "net.onnx")], r"pip install 'downmix\[export\]'", capsys)
