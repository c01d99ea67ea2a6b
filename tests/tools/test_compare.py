import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from downmix.cli import main
from downmix.tools import compare as tool
from downmix.tools.compare import Comparison, Run, compare
from downmix.train import Epoch, Recipe
from downmix.train.data import Batch
from downmix.train.sources import load_data
from tests.refused import refused
from tests.train.helpers import make_folders

PAIR = ("tiny_resnet", ["tiny_pix_resnet"])
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "image_size": 8, "warmup_epochs": 0}


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(make_folders(tmp_path / "data", count=15))


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "_ROUNDS", {"latency": 2, "training": 2})


def test_writes_table_json_csv_and_picture(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    recipe = Recipe(data=data, amp="bf16", channels_last=True, **QUICK)
    result = compare(*PAIR, recipe, seeds=[0, 1], output=output, console=Console(width=120))
    printed = capsys.readouterr().out
    for row in (
        "params",
        "in convolutions",
        "GMACs",
        "activations MB/image",
        "ms at batch 8, median",
        "training images/s, bf16, channels_last",
        "top-1",
    ):
        assert row in printed
    assert f"picture: {output / 'compare.png'}" in printed

    saved = json.loads((output / "compare.json").read_text())
    assert [(run["seed"], run["model"]) for run in saved["runs"]] == [
        (s, m) for s in (0, 1) for m in (PAIR[0], *PAIR[1])
    ]
    assert saved["recipe"]["image_size"] == 8
    with Image.open(output / "compare.png") as picture:
        assert picture.size[0] > 1000
    rows = list(csv.DictReader((output / "compare.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == result.models
    assert rows[0]["training_mode"] == "bf16, channels_last"
    assert rows[0]["conv_params"] == rows[1]["conv_params"]
    assert int(rows[1]["macs"]) < int(rows[0]["macs"])
    assert float(rows[0]["top1_mean"]) == pytest.approx(sum(result.top1(PAIR[0])) / 2, abs=1e-4)


def test_a_training_step_is_timed_as_the_recipe_trains(data: str) -> None:
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            seen.extend([x, self.conv.weight, self.conv(x)])
            return self.norm(seen[-1]).mean((2, 3))

    recipe = Recipe(data=data, amp="bf16", channels_last=True, ema_decay=0.5, device="cpu", **QUICK)
    batch = Batch(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long), [], [])
    network = Watched()
    before = network.conv.weight.clone()
    tool._training_step(network, recipe, load_data(recipe), batch)()
    assert seen[2].dtype == torch.bfloat16
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
    assert not torch.equal(network.conv.weight, before)


def test_an_interrupt_leaves_what_was_finished_and_resume_goes_on(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = tool.train, []

    def train_once(recipe: Recipe, *args: Any, **kwargs: Any) -> list[Epoch]:
        trained.append(recipe.model)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(recipe, *args, **kwargs)

    monkeypatch.setattr(tool, "train", train_once)
    command = ["compare", PAIR[0], *PAIR[1], "--data", data, "--epochs=1", "--batch_size=8", "--seeds", "0"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--output", str(tmp_path)])
    assert stop.value.code == 130
    assert len(json.loads((tmp_path / "compare.json").read_text())["runs"]) == 1
    assert (tmp_path / "compare.png").exists()
    checkpoint = tmp_path / "tiny_resnet-seed0" / "last.safetensors"
    written = checkpoint.stat().st_mtime_ns

    with pytest.raises(SystemExit) as stop:
        main([*command, "--output", str(tmp_path)])
    assert stop.value.code == 2  # what is there is not trained over
    main([*command, "--output", str(tmp_path), "--resume", "auto"])
    assert checkpoint.stat().st_mtime_ns == written
    resumed = json.loads((tmp_path / "compare.json").read_text())["runs"]
    main([*command, "--output", str(tmp_path / "anew")])
    undisturbed = json.loads((tmp_path / "anew" / "compare.json").read_text())["runs"]
    assert [_without_seconds(run) for run in resumed] == [_without_seconds(run) for run in undisturbed]


def test_a_folder_of_another_comparison_is_refused_before_anything_is_trained(tmp_path: Path, data: str) -> None:
    other, shared = PAIR[0], PAIR[1][0]
    (tmp_path / "compare.json").write_text("of before")
    (tmp_path / f"{shared}-seed1").mkdir()
    (tmp_path / f"{shared}-seed1" / "best.pt").touch()
    with pytest.raises(ValueError, match=f"{shared}-seed1 holds checkpoints of a training; go on with --resume auto"):
        compare(other, [shared], Recipe(data=data, device="cpu", **QUICK), seeds=[0, 1], output=tmp_path)
    assert (tmp_path / "compare.json").read_text() == "of before"


def test_a_seed_that_is_too_large_is_refused_before_anything_is_trained(tmp_path: Path, data: str) -> None:
    with pytest.raises(ValueError, match="seed must be between -4294967296 and 4294967296, got 8589934592"):
        compare(
            PAIR[0], PAIR[1], Recipe(data=data, device="cpu", **QUICK), seeds=[0, 2**33], output=tmp_path / "compared"
        )
    assert not (tmp_path / "compared").exists()


def _without_seconds(run: dict[str, Any]) -> dict[str, Any]:
    return run | {"epochs": [epoch | {"seconds": None} for epoch in run["epochs"]]}


def test_many_networks_stand_in_rows_under_their_whole_names(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "train", lambda *args, **kwargs: [Epoch(1, 0, 1, {"top1": 0.5})])
    pools = [f"vgg_small:pool={word}" for word in ("avg", "lp", "stochastic", "s3", "mixed")]
    networks = ["vgg_small", *pools, "resnet29_small:squeeze=dwp"]
    recipe = Recipe(data=data, **(QUICK | {"image_size": 16}))
    console = Console(width=180, record=True, file=io.StringIO())
    compare(networks[0], networks[1:], recipe, seeds=[0], output=tmp_path, console=console)
    text = console.export_text()
    assert all(f"│ {name} " in text for name in networks)
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == networks
    assert {row["macs"] for row in rows[:-1]} == {rows[0]["macs"]}  # a pool counts as the one it replaces
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.size[0] > 1500


def test_what_is_measured_is_converted_as_what_is_trained(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, int] = {}

    def count(recipe: Recipe, *args: Any, task: Any, **kwargs: Any) -> list[Epoch]:
        trained[recipe.model] = sum(p.numel() for p in task.create_model().parameters())
        return [Epoch(1, 0, 1, {"top1": 0.5})]

    monkeypatch.setattr(tool, "train", count)
    for squeeze in ("none", "pix"):
        recipe = Recipe(data=data, squeeze=squeeze, **QUICK)
        result = compare("tiny_resnet", ["resnet29_small"], recipe, seeds=[0], output=tmp_path / squeeze)
        assert {name: cost.params for name, cost in result.costs.items()} == trained


def comparison(baseline: list[float], candidate: list[float]) -> Comparison:
    result = Comparison(["a", "b"], [0], Recipe(), {})
    for name, values in (("a", baseline), ("b", candidate)):
        result.runs += [Run(name, i, [Epoch(0, 0, 1, {"top1": value})]) for i, value in enumerate(values)]
    return result


def test_json_has_no_nan(tmp_path: Path) -> None:
    result = Comparison([PAIR[0]], [0], Recipe(), {})
    result.runs = [Run(PAIR[0], 0, [Epoch(float("nan"), 0.1, 1.0, {"top1": 0.5, "val_loss": float("inf")})])]
    tool.report.write_json(result, tmp_path)
    (run,) = json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)["runs"]
    (epoch,) = run["epochs"]
    assert epoch["train_loss"] is epoch["metrics"]["val_loss"] is None
    assert epoch["metrics"]["top1"] == 0.5


def test_the_verdict_sets_the_difference_against_the_seeds() -> None:
    assert comparison([0.90, 0.92], [0.91, 0.93]).verdict("b") == "+1.00 points, inside the seeds' ±2.00"
    assert comparison([0.90, 0.92], [0.80, 0.82]).verdict("b") == "-10.00 points, more than the seeds' ±2.00"
    assert comparison([0.90], [0.80]).verdict("b") == "needs two seeds or more"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet29_smal", "pix_resnet29_small"], "no network 'resnet29_smal'.* did you mean resnet29_small"),
        (["resnet29_small", "resnet29_small"], "each network can stand once"),
        (["resnet29_small", "pix_resnet29_small", "--seeds", "1", "1"], "seeds must be one or more different numbers"),
        (["resnet29_small", "pix_resnet29_small", "--data", "nowhere"], "there is no data set or folder 'nowhere'"),
        (["resnet29_small", "pix_resnet29_small", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["resnet29_small", "pix_resnet29_small", "--device", "gpu"], "device must be cpu"),
        (
            ["resnet29_small", "vgg_small", "--recipe", "camvid_pspnet"],
            "camvid_pspnet is for segmentation, this command",
        ),
        (["resnet29_small", "vgg_small:pool=hard"], "pool must be one of 'max', .* got 'hard'"),
        (
            ["resnet29_small", "vgg_small:squeeze=pix"],
            "vgg_small:squeeze=pix: squeeze=pix replaces nothing: it has none",
        ),
        (["vgg_small", "vgg_small:pool=max"], "pool=max replaces nothing: .*features.1 is already MaxPool2d"),
        (["resnet29_small", "vit_tiny_patch16_224"], "vit_tiny_patch16_224 can't process images of 16×16 pixels"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["compare", *arguments, "--output", str(tmp_path / "out")], sentence, capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_ends_in_one_sentence(
    workers: int, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(data) / "bee" / "3.png").write_bytes(b"junk")
    arguments = ["--data", data, "--epochs=1", "--batch_size=8", f"--workers={workers}", "--output", str(tmp_path)]
    sentence = r"^downmix: error: \S*bee/3\.png can't be read as an image"
    refused(["compare", PAIR[0], *PAIR[1], *arguments], sentence, capsys)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no network"):
        main(["compare", "nothing", "at_all", "--debug", "--output", str(tmp_path)])
