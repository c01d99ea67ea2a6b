"""Whether every command says at once, before any work, that its results could not be written."""

from pathlib import Path

import pytest

from downmix.cli import main
from tests.refused import refused

FILES = {
    "bench": ["bench", "no_network", "--output"],
    "bench --exported": ["bench", "--exported", "no.onnx", "--output"],
    "profile": ["profile", "no_network", "--output"],
    "report": ["report", "no_run", "--output"],
    "tables": ["tables", "--output"],
    "tables --plot": ["tables", "--plot"],
    "pool": ["pool", "no.png", "--output"],
    "cam": ["explain", "cam", "no.png", "--models", "no_network", "--output"],
    "signal": ["explain", "signal", "no.png", "--model", "no_network", "--output"],
    "tradeoff": ["explain", "tradeoff", "no_run", "--output"],
}
FOLDERS = {
    "compare": ["compare", "no_network", "no_other", "--data", "no_data/", "--output"],
    "convert": ["convert", "no_network", "--output"],
    "train": ["train", "--model", "no_network", "--data", "no_data/", "--output"],
    "probabilities": ["explain", "probabilities", "no_network", "--output"],
    "pool --separate": ["pool", "no.png", "--separate"],
}


@pytest.fixture
def beside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()


@pytest.mark.usefixtures("beside_a_file")
@pytest.mark.parametrize("words", FILES.values(), ids=FILES)
def test_where_a_file_can_not_be_written(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name = words[-1].removeprefix("--")
    refused([*words, "."], f"{name} must be a file that can be written, got ., which is a folder", capsys)
    refused([*words, "file/a"], rf"{name} must be a file .* got file/a \(file is a file\); choose another", capsys)


@pytest.mark.usefixtures("beside_a_file")
@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
def test_where_a_folder_can_not_be_written(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name = words[-1].removeprefix("--")
    sentence = rf"{name} must be a folder that can be written, got file/a \(file is a file\); choose another, or"
    refused([*words, "file/a"], sentence, capsys)


def test_export_looks_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downmix.tools.export.export", None)
    (tmp_path / "a.onnx").mkdir()
    words = ["export", "tiny_resnet", "--output"]
    refused([*words, str(tmp_path / "a.onnx")], "output must be a file .* which is a folder", capsys)
    refused([*words, str(tmp_path / "a.pt2")], "a file of format onnx ends in .onnx, got a.pt2", capsys)


def test_the_picture_beside_a_benchmark_is_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").mkdir()
    words = ["bench", "no_network", "--output"]
    refused([*words, str(tmp_path / "a.csv")], "output must be a file .*a.png, which is a folder", capsys)
    refused([*words, str(tmp_path / "b.png")], "output is a CSV file, and a PNG goes beside it; give .*b.png", capsys)


def test_a_dry_run_needs_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["convert", "tiny_resnet", "--input", "3", "16", "16", "--dry_run"])
    assert not list(tmp_path.iterdir())
