import csv
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from downmix import ChannelPool, LIPPool2d
from downmix.cli import main
from downmix.cost import count_macs
from downmix.models._networks import create_network
from downmix.tools import _bench_networks
from downmix.tools import bench as tool
from downmix.tools._bench_networks import settle_batch_norms
from downmix.tools.bench import Configuration, bench, configurations
from tests.refused import refused

QUICK = ["--image_size", "8", "--rounds", "2", "--batch_sizes", "2"]
TIMES = {"tiny_resnet": [12.0, 10.0, 30.0], "tiny_pix_resnet": [5.0, 8.0, 24.0]}
PAIR = list(TIMES)
EAGER = Configuration("inference", "eager", "channels_last", False, 2)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line.strip("│┃"))]


@pytest.fixture
def _fake_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleave(calls: dict[str, Any], rounds: int) -> dict[str, list[float]]:
        for call in calls.values():
            call()
        return {name: TIMES[name] for name in calls}

    monkeypatch.setattr(tool, "interleave", interleave)


@pytest.mark.usefixtures("_fake_times")
def test_table_csv_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "bench.csv"
    main(["bench", "tiny_pix_resnet", "--against", "tiny_resnet", *QUICK, "--output", str(path)])
    printed = capsys.readouterr().out
    table = [cells(line) for line in printed.splitlines() if line.startswith("│")]
    macs = [count_macs(timm.create_model(name), (3, 8, 8)) for name in PAIR]
    ratio = f"{macs[0] / macs[1]:.2f}"
    assert [row[0] for row in table[::2]] == [
        "inference, eager, channels_last, batch 2",
        "inference, eager, channels_last, BN folded, batch 2",
        "training, eager, channels_last, batch 2",
    ]
    assert [row[1] for row in table] == PAIR * 3
    assert all(row[4:] == ["1.00", "10.00", "1.00", "12.00", "1.00", "166.7"] for row in table[::2])
    assert all(row[4:] == [ratio, "5.00", "2.00", "8.00", "1.50", "250.0"] for row in table[1::2])
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in timm.create_model("tiny_pix_resnet").modules())
    assert f"tiny_pix_resnet: {norms} of {norms} BatchNorms folded" in printed
    assert f"picture: {path.with_suffix('.png')}" in printed

    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["mode"], row["fold_bn"], row["network"]) for row in rows] == [
        (mode, folded, name)
        for mode, folded in (("inference", "no"), ("inference", "yes"), ("training", "no"))
        for name in PAIR
    ]
    assert [int(row["macs"]) for row in rows[:2]] == macs
    assert {row["baseline"] for row in rows} == {"tiny_resnet"}
    ours = rows[3]
    assert (ours["min_ms"], ours["min_ratio"], ours["median_ratio"]) == ("5.0000", "2.0000", "1.5000")
    assert (ours["folded_norms"], ours["norms"], ours["error"]) == (str(norms), str(norms), "")
    assert ours["torch_version"] == torch.__version__.split("+")[0]
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size[0] > 1000


def test_configurations_are_every_combination_once() -> None:
    found = configurations(
        ["inference", "training"], ["eager", "compile"], ["nchw", "channels_last"], "both", [1, 8, 32]
    )
    assert len(found) == len(set(found)) == 2 * 2 * 3 * (2 + 1)
    assert [c.fold_bn for c in configurations(["inference", "training"], ["eager"], ["nchw"], "yes", [1])] == [
        True,
        False,
    ]


def test_each_mode_runs_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = _bench_networks.Subject("tiny", timm.create_model("tiny_resnet"), (3, 8, 8), torch.device("cpu"))
    before = {name: value.clone() for name, value in subject.network.state_dict().items()}
    copies = []
    for mode, dtype in (("inference", torch.float64), ("training", torch.bfloat16)):
        seen = []
        real = nn.Conv2d.forward

        def forward(conv: nn.Conv2d, x: torch.Tensor, seen: list[Any] = seen, real: Any = real) -> torch.Tensor:
            seen.append((conv, x, torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            return real(conv, x)

        with monkeypatch.context() as patch:
            call = subject.call(Configuration(mode, "eager", "channels_last", False, 3), dtype)
            patch.setattr(nn.Conv2d, "forward", forward)
            call()
        first, x, inference, grad = seen[0]
        assert (inference, grad) == ((True, False) if mode == "inference" else (False, True))
        assert first.training == (mode == "training")
        assert x.shape == (3, 3, 8, 8)
        assert x.dtype == first.weight.dtype == dtype
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert x.std() > 0.5
        copies.append(first)
    assert copies[0].weight.grad is None
    assert copies[1].weight.grad.abs().max() > 0
    assert torch.equal(copies[0].weight, before["conv1.weight"].double())
    assert not torch.equal(copies[1].weight, before["conv1.weight"].bfloat16())
    assert all(torch.equal(value, before[name]) for name, value in subject.network.state_dict().items())


@pytest.mark.usefixtures("_fake_times")
def test_a_network_that_fails_is_a_row_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile(network: nn.Module, dynamic: bool) -> nn.Module:
        if any("PiX" in type(module).__name__ for module in network.modules()):
            raise RuntimeError("no compiler for [this]\n\nand a long story")
        return network

    monkeypatch.setattr(torch, "compile", compile)
    path = tmp_path / "bench.csv"
    ways = configurations(["inference"], ["eager", "compile"], ["nchw"], "no", [2])
    result = bench(PAIR, ways, image_size=8, rounds=2, output=path)
    assert [(bool(row.ms), row.error) for row in result.rows] == [
        *[(True, "")] * 3,
        (False, "no compiler for [this]"),
    ]
    assert result.speedup(result.rows[3], "min") is None
    printed = capsys.readouterr().out
    assert "tiny_pix_resnet, inference, compile, nchw, batch 2: no compiler for [this]\n" in printed
    assert "failed" in printed
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert (rows[3]["min_ms"], rows[3]["error"]) == ("", "no compiler for [this]")

    with pytest.raises(ValueError, match=r"nothing could be measured: no compiler for \[this\]"):
        bench(PAIR[1:], ways[1:], image_size=8, rounds=2)
    reversed_ = bench(PAIR, ways[1:], baseline="tiny_pix_resnet", image_size=8, rounds=2)  # fails, and is the baseline
    assert reversed_.speedup(reversed_.rows[0], "min") is None


def test_an_interrupt_leaves_what_was_finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = []

    def interleave(calls: dict[str, Any], rounds: int) -> dict[str, list[float]]:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return {name: TIMES[name] for name in calls}

    monkeypatch.setattr(tool, "interleave", interleave)
    path = tmp_path / "bench.csv"
    with pytest.raises(SystemExit) as stop:
        main(["bench", *PAIR, *QUICK, "--output", str(path)])
    assert stop.value.code == 130
    assert len(path.read_text().splitlines()) == 1 + len(PAIR)
    assert path.with_suffix(".png").exists()


def test_times_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        main(["bench", "tiny_resnet", *QUICK, "--modes", "inference", "--fold_bn", "yes", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    (row,) = (cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    assert float(row[5]) > 0


def test_settled_norms_have_the_statistics_of_the_images() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.2)
    nn.init.zeros_(norm.weight)
    images = 5 + 2 * torch.randn(4, 3, 9, 9)
    settle_batch_norms(norm.eval(), images)
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    assert norm.weight.min() > 0.4
    assert norm.momentum == 0.2
    assert not norm.training


def test_a_network_with_words_for_its_pools_and_squeezes() -> None:
    network = create_network("resnet26:layers=(1, 1, 1, 1),pool=lip,squeeze=dwp", num_classes=5, input_size=(3, 64, 64))
    assert isinstance(network.maxpool, LIPPool2d)
    assert isinstance(network.layer2[0].conv1, ChannelPool)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    with torch.device("meta"):
        assert create_network("vgg_small:pool=soft").head.fc.weight.is_meta


def test_a_network_with_arguments_of_its_own() -> None:
    network = create_network("resnet18:layers=(1, 1, 1, 1),act_layer=silu,num_classes=7", in_chans=1)
    assert len(network.layer1) == 1
    assert isinstance(network.act1, nn.SiLU)
    assert network.fc.out_features == 7
    assert network.conv1.in_channels == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet5", *QUICK], "there is no network 'resnet5'"),
        (["tiny_resnet:5", *QUICK], "are written tiny_resnet:key=value,key=value, got tiny_resnet:5"),
        (["resnet18:base_width=", *QUICK], "are written resnet18:key=value,key=value, got resnet18:base_width="),
        (["resnet18:a=1)+_(b=2", *QUICK], "are written resnet18:key=value,key=value"),
        (["resnet18:width=3", *QUICK], "timm can't build 'resnet18' with {'width': 3}"),
        (["resnet18:act_layer=foo", *QUICK], "timm can't build 'resnet18' with {'act_layer': 'foo'}"),
        (["tiny_resnet", "tiny_resnet", *QUICK], "each network can stand once"),
        (["tiny_resnet"], "tiny_resnet does not say which images it takes; pass --image_size"),
        (["tiny_resnet", *QUICK, "--image_size", "0"], "tiny_resnet can't process images of 3×0×0"),
        (["tiny_resnet", *QUICK, "--rounds", "1"], "rounds must be at least 2, got 1"),
        (["tiny_resnet", *QUICK, "--batch_sizes", "0"], "batch_size must be at least 1, got 0"),
        (["tiny_resnet", *QUICK, "--threads", "0"], "threads must be at least 1, got 0"),
        (["tiny_resnet", *QUICK, "--engines", "jit"], "jit"),
        (["tiny_resnet", *QUICK, "--device", "gpu"], "device must be cpu"),
        (["tiny_resnet", *QUICK, "--engines", "cuda_graph"], "a CUDA graph needs a GPU, and the device is cpu"),
        (["test_resnet:num_classes=0,global_pool=''", *QUICK], r"must be a classifier, whose output is \[B, classes\]"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["bench", *arguments], sentence, capsys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_replay_inference_and_training() -> None:
    names = ["test_resnet", "test_pix_resnet"]
    ways = configurations(["inference", "training"], ["cuda_graph"], ["channels_last"], "both", [2])
    result = bench(names, ways, image_size=64, rounds=2, device="cuda")
    assert [(row.network, row.error, bool(row.ms)) for row in result.rows] == [(name, "", True) for name in names * 3]


def test_a_training_step_is_never_folded() -> None:
    with pytest.raises(ValueError, match="a training step needs its BatchNorms"):
        Configuration("training", "eager", "nchw", True, 1)
