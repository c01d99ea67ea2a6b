"""What the command line answers to bad input."""

import re

import pytest

from downmix.cli import main


def refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with code 2, and with one line that matches ``sentence``."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert re.search(sentence, error), error
    assert len(error.splitlines()) == 1
