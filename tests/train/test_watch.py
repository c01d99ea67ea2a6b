import errno
import io
import itertools
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from downmix.train import Interrupted, train
from downmix.train.checkpoint import CheckpointError

from .helpers import make_folders, quick_recipe, run
from .test_resume import interrupted_at


def test_the_bar_says_loss_rate_and_memory(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    train(quick_recipe(make_folders(tmp_path, count=20)), console=console)
    assert re.search(r"tiny_net .* 4/4 .*loss 0\.\d+ .*images/s  \d+\.\d GiB", console.file.getvalue())


def test_the_bar_says_the_rate_of_long_steps_too(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, get_time=partial(next, itertools.count(step=40.0)))
    train(quick_recipe(make_folders(tmp_path, count=20)), console=console)
    assert re.search(r" 0\.\d images/s", console.file.getvalue())


def test_a_resumed_training_loses_no_point_of_its_curves(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20), epochs=2, log_every=1)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "out", on_step=interrupted_at(2))
    run(recipe, tmp_path / "out", resume="auto")
    logged = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    steps = [[point.step for point in logged.Scalars(name)] for name in ("train/loss", "epoch/top1")]
    assert steps == [list(range(1, 9)), [4, 8]]


def test_going_back_takes_the_curves_back_too(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20), epochs=3, keep_every=1)
    run(recipe, tmp_path / "out")
    run(recipe, tmp_path / "out", resume=str(tmp_path / "out" / "epoch-0001.pt"))
    logged = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [point.step for point in logged.Scalars("epoch/top1")] == [4, 8, 12]


@pytest.mark.parametrize("call", ["__init__", "add_scalar", "close"])
def test_a_disk_that_refuses_the_curves_is_named(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, call, refuse)
    with pytest.raises(CheckpointError, match=r"out.tensorboard can't be written \(.*No space left .*make room, or"):
        run(quick_recipe(make_folders(tmp_path / "data", count=20)), tmp_path / "out")


class Run:
    """Of the parts of W&B's that we use."""

    def __init__(self, name: str):
        self.id, self.logged, self.axes = name, [], []

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.logged.append("the end")

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def define_metric(self, *names: str, step_metric: str) -> None:
        self.axes.append((*names, step_metric))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Those that W&B started, in its place."""
    runs: list[Run] = []

    def init(project: str, dir: Path, config: dict[str, Any], id: str | None, resume: str) -> Run:
        if config["lr"] == 1:
            raise wandb.Error("no key")
        assert (project, resume, config["model"]) == ("downmix", "allow", "tiny_net")
        runs.append(Run(id or f"run{len(runs)}"))
        return runs[-1]

    wandb: Any = ModuleType("wandb")
    wandb.init, wandb.Error = init, type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return runs


def test_a_resumed_training_goes_on_in_its_run_of_weights_and_biases(runs: list[Run], tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20), epochs=2, wandb=True, log_every=1)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "out", on_step=interrupted_at(2))
    run(recipe, tmp_path / "out", resume="auto")
    run(recipe, tmp_path / "other")
    assert [run.id for run in runs] == ["run0", "run0", "run2"]
    assert [values["step"] for values in runs[1].logged[:-1]] == [3, 4, 4, 5, 6, 7, 8, 8]
    assert runs[1].logged[-1] == "the end"
    assert runs[1].axes == [("*", "step")]


def test_what_weights_and_biases_refuses_is_said(runs: list[Run], tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20), wandb=True, lr=1.0)
    with pytest.raises(ValueError, match=r"Biases does not start \(no key\); set WANDB_MODE=offline, or leave wandb"):
        train(recipe, tmp_path / "out")
