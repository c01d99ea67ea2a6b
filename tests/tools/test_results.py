"""Accuracies, operations and latencies come together from the outputs of other commands."""

import csv
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

import downmix
from downmix.cli import main
from downmix.tools._results import read_results
from tests.refused import refused

RESULTS = Path(downmix.__file__).parents[1] / "benchmarks" / "results"
COMPARISON, BENCH = RESULTS / "compare_digits_cpu.csv", RESULTS / "networks_cpu.csv"


def first_row(path: Path) -> dict[str, str]:
    return next(csv.DictReader(path.read_text().splitlines()))


def first_top1() -> str:
    """The accuracy of the comparison's first network, as it is printed."""
    row = first_row(COMPARISON)
    return f"{100 * float(row['top1_mean']):.2f} ± {100 * float(row['top1_std']):.2f}"


def make_run(folder: Path, model: str, top1: float, **recipe: object) -> Path:
    """What `downmix train` leaves in its folder, as far as it is read."""
    folder.mkdir()
    fields = {"model": model, "data": "digits", "image_size": 16, "squeeze": "none", "pool": "none", "convert": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields | recipe))
    (folder / "epochs.csv").write_text(f"epoch,train_loss,top1,val_loss\n1,2.0,0.1,2.0\n2,1.0,{top1},1.0\n")
    return folder


def make_bench(path: Path, network: str, image_size: str) -> Path:
    header, row, *_ = BENCH.read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    cells |= {"network": network, "image_size": image_size, "median_ms": "3.5", "min_ms": "3.0"}
    path.write_text(f"{header}\n{','.join(cells.values())}\n")
    return path


def test_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "compare.csv").write_bytes(COMPARISON.read_bytes())
    found = read_results([tmp_path])
    assert [(a.network, a.data, a.image_size) for a in found.accuracies] == [
        ("resnet29_small", "digits", 16),
        ("pix_resnet29_small", "digits", 16),
    ]
    ways = found.latencies_of(found.accuracies[1])
    assert [way.way.rpartition(", ")[2] for way in ways] == ["batch 1", "batch 8"]
    assert all(way.min_ms < way.median_ms for way in ways)
    assert found.macs["pix_resnet29_small", 16] < found.macs["resnet29_small", 16]


def test_a_benchmark_goes_with_accuracies_at_its_image_size(tmp_path: Path) -> None:
    same = make_bench(tmp_path / "a.csv", "resnet29_small", "3x16x16")
    other = make_bench(tmp_path / "b.csv", "resnet29_small", "3x32x32")
    found = read_results([COMPARISON, same, other])
    ways = found.latencies_of(found.accuracies[0])
    assert [way.median_ms for way in ways if "channels_last" in way.way] == [3.5]


def test_trainings_of_one_network_are_seeds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", "n", 0.5), make_run(tmp_path / "b", "n", 0.6, squeeze="none")]
    found = read_results([*runs, make_run(tmp_path / "c", "n", 0.7, squeeze="pix")])
    assert [(a.network, a.mean) for a in found.accuracies] == [("n", pytest.approx(0.55)), ("n squeeze=pix", 0.7)]
    assert found.accuracies[0].std == pytest.approx(0.005**0.5)
    assert found.accuracies[1].std is None


def test_conversions_of_other_layers_are_other_networks_with_short_names(tmp_path: Path) -> None:
    for name, layer in (("a", "conv1"), ("b", "conv2"), ("c", "conv2")):
        conversion = {"squeeze": "pix", "pool": None, "layers": {layer: [], **{f"more{i}": [] for i in range(20)}}}
        make_run(tmp_path / name, "resnet50", 0.5, convert=conversion)
    found = read_results([tmp_path / name for name in "abc"]).accuracies
    assert [accuracy.std for accuracy in found] == [None, 0.0]
    assert all(re.fullmatch(r"resnet50 convert=pix-[0-9a-f]{8}", accuracy.network) for accuracy in found)


def test_latencies_of_another_comparison_are_left_alone(tmp_path: Path) -> None:
    """They may be another machine's; those of a benchmark were asked for by its name."""
    (tmp_path / "compare.csv").write_bytes(COMPARISON.read_bytes())
    found = read_results([COMPARISON, tmp_path])
    assert len(found.accuracies) == 4
    assert all(len(found.latencies_of(accuracy)) == 2 for accuracy in found.accuracies)


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = make_bench(tmp_path / "bench.csv", "resnet29_small", "3x16x16")
    run = make_run(tmp_path / "run", "pix_resnet29_small", 0.98, data="other")
    lonely = make_run(tmp_path / "lonely", "pix_resnet29_small", 0.98, pool="soft")
    output = ["--output", str(tmp_path / "tradeoff.png")]
    main(["explain", "tradeoff", str(COMPARISON), str(bench), str(run), str(lonely), *output])
    printed = capsys.readouterr().out
    assert re.search(rf"resnet29_small +│ {first_top1()} │ +0.0132 │ +3.50 │ +3.00", printed)
    assert "pix_resnet29_small pool=soft: operations unknown" in printed
    with Image.open(tmp_path / "tradeoff.png") as picture:
        assert picture.size == (1570, 700)


def test_a_comparison_that_excel_saved(tmp_path: Path) -> None:
    (tmp_path / "compare.csv").write_text(COMPARISON.read_text(), encoding="utf-8-sig")
    assert len(read_results([tmp_path / "compare.csv"]).accuracies) == 2


@pytest.mark.parametrize("command", [["explain", "tradeoff"], ["report"]])
@pytest.mark.parametrize(("source", "column"), [(BENCH, "macs"), (BENCH, "threads"), (COMPARISON, "image_size")])
def test_a_column_that_is_missing_is_named(
    command: list[str], source: Path, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(source.read_text().splitlines()))
    with (tmp_path / "file.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != column], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    arguments = [*command, str(tmp_path / "file.csv"), "--output", str(tmp_path / "output.png")]
    refused(arguments, f"file.csv has no column '{column}'; give the file as it was written", capsys)
    assert not (tmp_path / "output.png").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,b\n1,2\n", "is no CSV file of `downmix compare` or `downmix bench`"),
        ("a,b\n", "holds no row"),
        ("runtime,file,baseline\nort,a.onnx,a.onnx\n", "times exported files, which don't say their network"),
        (BENCH.read_text(), "none of these tells an accuracy; add the output of"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.csv").write_text(content)
    refused(["explain", "tradeoff", str(tmp_path / "file.csv")], sentence, capsys)
