"""What torchrun starts again after a death. `torchrun` is its environment, and its store, which outlives processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from downmix.train import train
from downmix.train.checkpoint import read_checkpoint

from .helpers import make_folders, quick_recipe

REFUSED = "holds checkpoints of a training; go on with --resume auto, or give another --output"


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    stores: list[dist.TCPStore] = []

    def start(restarts: int) -> None:
        if not restarts:
            stores.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        environment = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": stores[-1].port}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    return start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folders(tmp_path_factory.mktemp("data"), count=20))


class DeathError(Exception):
    pass


def run(data: str, folder: Path, resume: str = "", dies_at: int = 0, seed: int = 0) -> None:
    def on_step(done: int, total: int) -> None:
        if done == dies_at:
            raise DeathError

    train(quick_recipe(data, epochs=3, seed=seed), folder, resume=resume, on_step=on_step)


def test_a_restart_goes_on(
    torchrun: Callable[[int], None], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torchrun(0)
    for restarts, dies_at in enumerate((2, 6)):  # before the first checkpoint, and after it
        torchrun(restarts)
        with pytest.raises(DeathError):
            run(data, tmp_path, dies_at=dies_at)
    assert "going on" not in capsys.readouterr().err
    torchrun(2)
    run(data, tmp_path)
    assert "step-00000004.pt, after 4 steps" in capsys.readouterr().err


def test_a_restart_leaves_another_training_alone(torchrun: Callable[[int], None], data: str, tmp_path: Path) -> None:
    torchrun(0)
    run(data, tmp_path)
    torchrun(0)
    for restarts in (0, 1, 2):
        torchrun(restarts)
        with pytest.raises(ValueError, match=REFUSED):
            run(data, tmp_path, seed=1)
    assert read_checkpoint(tmp_path / "best.pt")["recipe"]["seed"] == 0


def test_a_restart_goes_back_to_the_file_only_until_there_is_a_newer_one(
    torchrun: Callable[[int], None], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeathError):
        run(data, tmp_path / "first", dies_at=5)
    file = str(tmp_path / "first" / "step-00000004.pt")
    for restarts, dies_at in enumerate((6, 9, 99)):
        torchrun(restarts)
        try:
            run(data, tmp_path / "out", resume=file, dies_at=dies_at)
        except DeathError:
            continue
    said = [line.rpartition("/")[2] for line in capsys.readouterr().err.splitlines() if "going on" in line]
    assert said == [f"step-0000000{step}.pt, after {step} steps" for step in (4, 4, 8)]
