"""8 bits give nearly the logits of float32 in each runtime, and it is known what stays in floating point."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from downmix.cli import main
from downmix.export import float_nodes, load, quantise, regroup, write
from downmix.fuse import fold_batch_norms
from downmix.tools._bench_networks import settle_batch_norms
from tests.refused import refused

pytestmark = pytest.mark.usefixtures("without_kernels")


def test_logits_stay_near_and_pix_stays_partly_in_floats(tmp_path: Path) -> None:
    network, images = timm.create_model("test_pix_resnet", num_classes=7).eval(), torch.randn(8, 3, 64, 64)
    settle_batch_norms(network, images)
    regrouped, _ = regroup(fold_batch_norms(network, images)[0], images)
    write(regrouped, images, tmp_path / "a.onnx", "onnx", metadata={"model": "a test"})
    expected = network(images).detach().numpy()
    for name in ("b.onnx", "b.xml"):
        quantise(tmp_path / "a.onnx", tmp_path / name, iter(images[:, None].numpy()))
        exported = load(tmp_path / name, threads=1)
        assert exported.metadata == {"model": "a test"}
        found = exported.run(images.numpy())
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert 1e-3 < error < 0.15
        assert np.corrcoef(found.flat, expected.flat)[0, 1] > 0.99
    assert float_nodes(tmp_path / "a.onnx")["Conv"] == 17
    operators, layers = float_nodes(tmp_path / "b.onnx"), float_nodes(tmp_path / "b.xml")
    assert operators["Conv"] == layers["Convolution"] == 4  # the gates
    assert operators["Max"] == 10
    assert "Add" not in operators


def test_the_command_scores_held_out_images(tmp_path: Path, capsys: Any) -> None:
    for label, colour in (("blue", (30, 40, 220)), ("red", (230, 20, 10))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (64, 64), tuple(c + n for c in colour)).save(tmp_path / "data" / label / f"{n}.png")
    words = ["export", "test_pix_resnet", "--dtype=int8", "--num_classes=2", "--output", str(tmp_path / "net.onnx")]
    main([*words, "--data", str(tmp_path / "data"), "--calibration_images", "4"])
    said = " ".join(capsys.readouterr().out.split())
    assert "on 4 held-out images top-1 50.00% in float32 and 50.00% in 8 bits; both agree on 100.00%" in said
    assert "computed in floating point: " in said
    refused(words, "name a data set as --data", capsys)
    with pytest.raises(ValueError, match="8 bits are for ONNX Runtime and OpenVINO"):
        quantise(tmp_path / "net.onnx", tmp_path / "net.pt2", [])
