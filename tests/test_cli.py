import subprocess
import sys

import pytest

import downmix
from downmix.cli import COMMANDS, main


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


def test_a_filter_that_matches_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["models", "resnext*"])
    assert stop.value.code == 2
    assert "no network of downmix matches 'resnext*'" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "downmix", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"downmix {downmix.__version__}"
