import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import downmix
from downmix.cli import COMMANDS, main
from tests.refused import refused


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_at_every_level(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "usage: downmix" in capsys.readouterr().out


def test_models_lists_params_and_gmacs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "pix_resnet50"])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "pix_resnet50" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["pix_resnet50", "3×224×224", "25.55", "3.188"]


def test_a_narrow_terminal_cuts_no_name_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    main(["models", "pix_resnet50_r8"])
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(row[0].strip() for row in rows) == "pix_resnet50_r8"
    assert "".join(row[1].strip() for row in rows) == "3×224×224"


def test_a_filter_that_matches_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused(["models", "resnext*"], r"no network of downmix matches 'resnext\*'", capsys)


def test_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "downmix", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"downmix {downmix.__version__}"


def test_ctrl_c_while_packages_are_imported_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*packages: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("downmix.cli.need", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 130


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_recipe_is_read(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = yaml.safe_load(recipe.read_text())
    commands = [["train", "--recipe", recipe.stem], ["compare", "a", "b", "--recipe", str(recipe)]]
    for command in commands[:1] if given.get("task") == "segmentation" else commands:  # which compare refuses
        with pytest.raises(SystemExit) as stop:
            main([*command, "--epochs", "77", "--print-config"])
        assert stop.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["segmentation"].items() >= given.get("segmentation", {}).items()
        fields = {name: value for name, value in (given | {"epochs": 77}).items() if name in config}
        fields.pop("segmentation", None)
        assert {name: config[name] for name in fields} == fields
        assert "data" in fields


@pytest.mark.parametrize("command", [["train"], ["compare", "a", "b", "--seeds", "7"]])
def test_what_is_printed_is_a_recipe_and_what_stands_before_a_recipe_counts(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for words in (["--lr", "0.5", "--output", "here", "--recipe", "cifar10"], ["--recipe", str(tmp_path / "a.yaml")]):
        with pytest.raises(SystemExit):
            main([*command, *words, "--print-config"])
        printed.append(capsys.readouterr().out)
        (tmp_path / "a.yaml").write_text(printed[-1])
    assert printed[0] == printed[1]
    config = yaml.safe_load(printed[0])
    assert (config["lr"], config["output"], config["batch_size"]) == (0.5, "here", 128)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compare", "a", "b", "--epochs", "many"], "epochs"),
        (["compare", "a", "b", "--wrong", "1"], "wrong"),
        (["compare", "a"], "candidates"),
        (["paint"], "paint"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(arguments, word, capsys)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "pix.onnx can't run: it got 1,\n  and expected 2\nPlease fix it.\n",
            "it got 1, and expected 2 Please fix it.",
        ),
        ("Caught ValueError in worker 0.\n  File x\nValueError: no image", "downmix: error: no image (--debug"),
        ("", "downmix: error: ValueError (--debug"),
    ],
)
def test_an_error_of_several_lines_is_one_sentence(
    said: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> None:
        raise ValueError(said)

    monkeypatch.setattr("downmix.tools.models.run", fail)
    with pytest.raises(SystemExit):
        main(["models"])
    assert shown in capsys.readouterr().err


def test_what_is_not_there_or_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["validate", str(tmp_path / "a b.pt")], "error: there is no file or folder .*/a b.pt ", capsys)
    refused(["validate", str(tmp_path)], f"error: {tmp_path} is a folder; give a file ", capsys)
    refused(["report", str(tmp_path / "gone")], "error: there is no file or folder .*gone ", capsys)
    words = ["explain", "tradeoff", str(tmp_path)]
    refused(words, f"error: {tmp_path} has neither epochs.csv nor compare.csv; give a folder of train or", capsys)
