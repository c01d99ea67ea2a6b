import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import downmix
from downmix.cli import main
from downmix.export import load
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
