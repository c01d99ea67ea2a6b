import csv
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from downmix.cli import main
from downmix.cost import count_macs
from downmix.tools import profile as tool
from tests.refused import refused

QUICK = ["--input", "3", "8", "8", "--rounds", "2", "--gflops", "10", "--gbytes", "1"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line.strip("│┃"))]


def test_layers_totals_and_what_was_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "profile.csv"
    main(["profile", "tiny_pix_resnet", "--against", "tiny_resnet", *QUICK, "--output", str(path)])
    lines = capsys.readouterr().out.splitlines()
    first, second = timm.create_model("tiny_pix_resnet"), timm.create_model("tiny_resnet")
    macs = [count_macs(network, (3, 8, 8)) for network in (first, second)]

    shown = [cells(line)[:2] for line in lines if "│" in line]
    assert shown[:4] == [
        ["conv1", "Conv2d"],
        ["bn1", "BatchNorm2d"],
        ["act1", "ReLU"],
        ["layer1.0.conv1", "PiX"],
    ]
    (total,) = (cells(line) for line in lines if line.startswith("│ total"))
    assert total[3:5] == [f"{sum(p.numel() for p in first.parameters()):,}", f"{macs[0] / 1e6:.3f}"]
    (row,) = (cells(line) for line in lines if "G operations, ptflops" in line)
    assert row[1:] == [*(f"{count / 1e9:.4f}" for count in macs), f"{macs[0] / macs[1]:.2f}"]
    assert "tiny_pix_resnet, left out by ptflops: downmix.pick_or_mix ×4, aten.add ×4" in lines
    assert "roofline: 10.0 GFLOP/s, 1.0 GB/s; a layer's measured time includes that of the hooks around it" in lines

    rows = list(csv.DictReader(path.read_text().splitlines()))
    totals = [row for row in rows if row["layer"] == "total"]
    assert [int(row["ptflops"]) for row in totals] == macs
    assert all(int(row["training_bytes"]) > int(row["inference_bytes"]) > 0 for row in totals)
    layers = [row for row in rows if row["network"] == "tiny_pix_resnet" and row["layer"] != "total"]
    assert sum(int(row["read_bytes"]) for row in layers) == int(totals[0]["read_bytes"])
    assert all(float(row["measured_ms"]) > 0 for row in layers)
    assert layers[0]["uncounted_by_paper"] == ""


def test_depth_joins_layers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", "tiny_pix_resnet", *QUICK, "--depth", "1", "--convention", "paper"])
    lines = capsys.readouterr().out.splitlines()
    table = [cells(line) for line in lines if "│" in line]
    names = [row[0] for row in table]
    names = names[: names.index("total")]
    assert names == ["conv1", "bn1", "act1", "layer1", "layer2", "layer3", "layer4", "global_pool.pool", "fc"]
    paper = count_macs(timm.create_model("tiny_pix_resnet"), (3, 8, 8), "paper")
    assert sum(float(row[4]) for row in table[: len(names)]) == pytest.approx(paper / 1e6, abs=0.005)


def test_a_layer_s_time_is_its_own_without_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second passes whenever somebody looks
    monkeypatch.setattr(tool, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    times = tool.layer_times(model, torch.ones(1), rounds=3)
    assert times == {"0": 1000, "1.0": 1000, "1": 2000, "": 3000}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet5"], "there is no network 'resnet5'"),
        (["tiny_resnet"], "tiny_resnet does not say which images it takes; pass --input"),
        (["tiny_resnet", *QUICK, "--depth", "0"], "depth must be at least 1, got 0"),
        (["tiny_resnet", *QUICK, "--rounds", "1"], "rounds must be at least 2, got 1"),
        (["tiny_resnet", *QUICK, "--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["tiny_resnet", *QUICK, "--gbytes", "0"], "gbytes must be above 0, got"),
        (["tiny_resnet", *QUICK, "--input", "5", "8", "8"], "tiny_resnet can't process images of 5×8×8"),
        (["tiny_resnet", *QUICK, "--convention", "flops"], "convention"),
        (["tiny_resnet", *QUICK, "--device", "gpu"], "device must be cpu"),
        (["tiny_resnet", *QUICK, "--gflops", "0"], "gflops must be above 0, got 0.0"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["profile", *arguments], sentence, capsys)
