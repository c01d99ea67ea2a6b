import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from downmix.cli import main
from downmix.models._networks import create_network
from downmix.tools import _explain_cam
from downmix.tools._trained import default_names, read_class_names, trained_network
from tests.refused import refused
from tests.train.helpers import make_folders


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(make_folders(tmp_path / "data", count=15))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "tiny.safetensors"
    save_file(create_network("tiny_pix_resnet").state_dict(), path)
    return str(path)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


class TestProbabilities:
    def arguments(self, data: str, checkpoint: str, output: Path, *more: str) -> list[str]:
        common = ["explain", "probabilities", "tiny_pix_resnet", "--data", data, "--checkpoint", checkpoint]
        return [*common, "--image_size", "12", "--output", str(output), *more]

    def test_writes_json_csv_and_pictures(
        self, tmp_path: Path, data: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(self.arguments(data, checkpoint, tmp_path / "out"))
        printed = capsys.readouterr().out
        assert "tiny_pix_resnet on" in printed
        assert "6 images" in printed
        saved = json.loads((tmp_path / "out" / "probabilities.json").read_text())
        assert (saved["classes"], saved["images"]) == (["ant", "bee"], [3, 3])
        assert list(saved["layers"]) == [f"layer{i}.0.conv1" for i in (1, 2, 3, 4)]
        layer = saved["layers"]["layer4.0.conv1"]
        assert sum(map(sum, layer["channel_histogram"])) == sum(map(sum, layer["class_histogram"])) == 6 * 16
        assert layer["pick_share"] == pytest.approx(sum(map(sum, layer["class_picks"])) / 6 / 16)
        rows = list(csv.DictReader((tmp_path / "out" / "probabilities.csv").read_text().splitlines()))
        assert len(rows) == sum(layer["channels"] for layer in saved["layers"].values())
        assert float(rows[-1]["mean"]) == pytest.approx(layer["channel_mean"][-1])
        assert size(tmp_path / "out" / "probabilities.png")[0] > 1000
        assert size(tmp_path / "out" / "layers.png")[0] > 500

    def test_svg_a_choice_of_layers_and_classes_and_fewer_images(
        self, tmp_path: Path, data: str, checkpoint: str
    ) -> None:
        more = ("--format=svg", "--layers", "layer4.0.conv1", "--classes", "bee", "--limit=4")
        main(self.arguments(data, checkpoint, tmp_path, *more))
        assert json.loads((tmp_path / "probabilities.json").read_text())["images"] == [2, 2]
        drawn = (tmp_path / "probabilities.svg").read_text()
        assert "layer4.0.conv1" in drawn
        assert "layer3.0.conv1" not in drawn
        assert "<svg" in (tmp_path / "layers.svg").read_text()

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            (["--layers", "layer9"], "there is no layer 'layer9'; known are layer1.0.conv1"),
            (["--classes", "cow"], "there is no class 'cow'; known are ant, bee"),
            (["--limit", "0"], "batch_size and limit must be at least 1, got 64 and 0"),
            (["--checkpoint", "nowhere.pt"], r"nowhere\.pt"),
        ],
    )
    def test_bad_input_ends_in_one_sentence(
        self,
        more: list[str],
        sentence: str,
        tmp_path: Path,
        data: str,
        checkpoint: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        refused(self.arguments(data, checkpoint, tmp_path, *more), sentence, capsys)

    def test_debug_shows_the_traceback(self, tmp_path: Path, data: str, checkpoint: str) -> None:
        with pytest.raises(ValueError, match="there is no layer"):
            main(self.arguments(data, checkpoint, tmp_path, "--layers", "layer9", "--debug"))


def test_weights_come_from_any_of_our_files(tmp_path: Path) -> None:
    own, average = (create_network("tiny_pix_resnet") for _ in range(2))
    training: dict[str, Any] = {"model": own.state_dict(), "ema": average.state_dict(), "recipe": {"lr": 0.1}}
    torch.save(training, tmp_path / "best.pt")
    torch.save(training | {"ema": None}, tmp_path / "last.pt")
    for source, wanted in ((tmp_path, average), (tmp_path / "best.pt", average), (tmp_path / "last.pt", own)):
        network: Any = trained_network("tiny_pix_resnet", str(source))
        assert torch.equal(network.fc.weight, wanted.fc.weight)
        assert not network.training


def test_weights_that_nobody_published_are_asked_for() -> None:
    with pytest.raises(ValueError, match="no published weights of pix_resnet29_small; give a file"):
        trained_network("pix_resnet29_small", None)


def test_class_names(tmp_path: Path) -> None:
    make_folders(tmp_path / "a")
    make_folders(tmp_path / "b" / "train")
    assert read_class_names(tmp_path / "a") == ["ant", "bee"]
    assert read_class_names(tmp_path / "b") == ["ant", "bee"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    for nothing in ("empty", "blank.txt"):
        with pytest.raises(ValueError, match=f"{nothing} names no class; give a file with a class a line, or a folder"):
            read_class_names(tmp_path / nothing)
    (tmp_path / "latin.txt").write_bytes("vögel".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is no text in UTF-8 \(.*\); give a file with a class a line"):
        read_class_names(tmp_path / "latin.txt")
    assert default_names(3) == ["0", "1", "2"]
    assert default_names(1000)[281] == "tabby"


class TestCam:
    @pytest.fixture
    def images(self, tmp_path: Path) -> list[str]:
        paths = []
        for i, shape in enumerate([(40, 30), (9, 80), (12, 12)]):
            paths.append(str(tmp_path / f"{i}.png"))
            Image.new("RGB", shape, (40 * i, 90, 200)).save(paths[-1])
        return paths

    def arguments(self, images: list[str], checkpoint: str, output: Path, *more: str) -> list[str]:
        models = ["tiny_pix_resnet", "tiny_pix_resnet:num_classes=2"]
        common = ["explain", "cam", *images, "--models", *models, "--checkpoints", checkpoint, checkpoint]
        return [*common, "--image_size", "16", "--output", str(output), *more]

    def test_networks_side_by_side(
        self, tmp_path: Path, images: list[str], checkpoint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "names.txt").write_text("ant\nbee\n")
        more = ("--classes", str(tmp_path / "names.txt"), "--target", "bee", "--batch_size=2")
        main(self.arguments(images, checkpoint, tmp_path / "cam.png", *more))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        assert re.search(r"0.png +tiny_pix_resnet: (ant|bee) [01]\.\d\d.*tiny_pix_resnet:num_classes=2: ", lines[0])
        assert size(tmp_path / "cam.png") == (780, 870)

    def test_many_images_make_more_pictures(
        self, tmp_path: Path, images: list[str], checkpoint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_explain_cam, "_ROWS", 2)
        main(self.arguments([str(tmp_path)], checkpoint, tmp_path / "out" / "cam.png"))
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cam-1.png", "cam-2.png"]

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            (["--target", "cow"], "there is no class 'cow'; known are 0, 1"),
            (["--layer", "layer9"], "no layer 'layer9'; near it are layer"),
            (["--models", "tiny_pix_resnet"], "give one checkpoint for each network, got 2 for 1"),
            (["--models", "tiny_pix_resnet", "tiny_pix_resnet"], "can stand once with the same checkpoint"),
            (["--models", "tiny_resnet", "tiny_resnet:num_classes=3"], "does not fit|has 3 classes"),
        ],
    )
    def test_bad_input_ends_in_one_sentence(
        self,
        more: list[str],
        sentence: str,
        tmp_path: Path,
        images: list[str],
        checkpoint: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        refused(self.arguments(images, checkpoint, tmp_path / "cam.png", *more), sentence, capsys)

    def test_a_broken_image_is_named(self, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "broken.png").write_bytes(b"junk")
        arguments = self.arguments([str(tmp_path / "broken.png")], checkpoint, tmp_path / "cam.png")
        refused(arguments, r"broken\.png can't be read as a picture", capsys)


class TestSignal:
    def arguments(self, tmp_path: Path, model: str, *more: str) -> list[str]:
        Image.effect_noise((50, 40), 60).save(tmp_path / "image.png")
        save_file(create_network(model).state_dict(), tmp_path / "own.safetensors")
        common = ["--checkpoint", str(tmp_path / "own.safetensors"), "--image_size", "32"]
        output = ["--output", str(tmp_path / "signal.png")]
        return ["explain", "signal", str(tmp_path / "image.png"), "--model", model, *common, *output, *more]

    def test_a_pix_layer(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(self.arguments(tmp_path, "tiny_pix_resnet", "--layer", "layer4.0.conv1"))
        assert re.search(r"layer4.0.conv1: \d+ of 16 channels pick", capsys.readouterr().out)
        assert size(tmp_path / "signal.png") == (1100, 1320)

    def test_a_pool(self, tmp_path: Path) -> None:
        main(self.arguments(tmp_path, "softpool_resnet18", "--channels", "3", "0"))
        assert size(tmp_path / "signal.png") == (880, 480)

    def test_a_global_pool(self, tmp_path: Path) -> None:
        main(self.arguments(tmp_path, "tiny_resnet"))
        assert size(tmp_path / "signal.png") == (880, 1320)

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            (["--channels", "16"], "the layer has the output channels 0 to 7, got 16"),
            (["--layer", "conv1"], "conv1 is a Conv2d; a PiX layer or a pool can be shown: layer1"),
        ],
    )
    def test_bad_input_ends_in_one_sentence(
        self, more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(self.arguments(tmp_path, "tiny_pix_resnet", *more), sentence, capsys)
