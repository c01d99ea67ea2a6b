import copy
import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from downmix.layers import FBSConv2d
from downmix.train import train
from downmix.train.checkpoint import read_checkpoint
from downmix.train.classification import Classification
from downmix.train.data import create_evaluation_loader, create_training_loader
from downmix.train.distributed import World, join
from downmix.train.evaluation import evaluate
from downmix.train.images import DataError
from downmix.train.sources import load_data
from downmix.train.validate import validate

from .helpers import make_folders, quick_recipe, run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "data", count=20)


def test_learns_and_repeats(data: Path) -> None:
    recipe = quick_recipe(data, model="tiny_pix_resnet", epochs=3)
    steps: list[tuple[int, int]] = []
    first = train(recipe, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 12) for i in range(1, 13)]
    assert first[-1].train_loss < first[0].train_loss
    losses = [epoch.train_loss for epoch in first]
    assert [epoch.train_loss for epoch in run(recipe)] == losses
    assert [epoch.train_loss for epoch in run(quick_recipe(data, model="tiny_pix_resnet", epochs=3, seed=2))] != losses


def test_convolutions_are_chosen_by_time_while_it_trains_unless_all_must_repeat(data: Path) -> None:
    chosen_by_time: list[bool] = []

    def on_step(done: int, total: int) -> None:
        chosen_by_time.append(torch.backends.cudnn.benchmark)

    recipe = quick_recipe(data, epochs=1)
    train(recipe, on_step=on_step)
    torch.use_deterministic_algorithms(True)
    try:
        train(recipe, on_step=on_step)
    finally:
        torch.use_deterministic_algorithms(False)
    half = len(chosen_by_time) // 2
    assert chosen_by_time == [True] * half + [False] * half
    assert not torch.backends.cudnn.benchmark


def test_evaluation_counts_every_image_once(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path, count=25))  # 10 held out, batches of 8
    task, world = Classification(recipe), World(torch.device("cpu"))

    class AlwaysTheFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[2.0, 0.0]]).expand(len(x), 2)

    loader = create_evaluation_loader(task.val_data, recipe, world)
    metrics = evaluate(AlwaysTheFirst(), task, loader, world)
    assert metrics is not None
    assert metrics["top1"] == 0.5
    assert metrics["val_loss"] == pytest.approx((torch.tensor([2.0, 0.0]).logsumexp(0) - 1).item(), abs=1e-6)


def test_a_held_out_loss_that_is_nan_is_not_left_out(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path, count=25))  # 10 held out, batches of 8
    task, world = Classification(recipe), World(torch.device("cpu"))

    class NaNForTwo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), torch.nan if len(x) == 2 else 1.0)

    metrics = evaluate(NaNForTwo(), task, create_evaluation_loader(task.val_data, recipe, world), world)
    assert metrics is not None
    assert math.isnan(metrics["val_loss"])


def test_too_few_images_for_a_batch(data: Path) -> None:
    recipe = quick_recipe(data, batch_size=32, accumulate=2)
    with pytest.raises(DataError, match=r"32 training images don't fill one batch of 64 \(32 × accumulate 2 × 1 proc"):
        create_training_loader(load_data(recipe).train, recipe, World(torch.device("cpu")))


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(data, lr=1e30, opt="sgd", checkpoint_every_steps=1)
    with pytest.raises(FloatingPointError, match=r"the loss became .* in step 2 of epoch 1 \(samples \d+, .*lower lr"):
        run(recipe, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.pt")
    progress = read_checkpoint(path)["progress"]
    assert (progress["step"], progress["loss_count"]) == (1, 1)


class PoisonedTask(Classification):
    """Its loss is NaN on the third and the fifth batch, and so are the images."""

    calls = 0

    def augment(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images * (torch.nan if self.calls in (2, 4) else 1), targets

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return super().loss(output, target) * (torch.nan if self.calls in (3, 5) else 1)


@pytest.mark.parametrize("skip", [1, 2])
def test_steps_with_a_loss_that_is_not_finite_can_be_left_out(skip: int, data: Path) -> None:
    recipe = quick_recipe(data, epochs=2, skip_nan=skip)
    model = Classification(recipe).create_model()
    if skip == 1:
        with pytest.raises(FloatingPointError, match="step 1 of epoch 2"):
            run(recipe, task=PoisonedTask(recipe), model=model)
        return
    run(recipe, task=PoisonedTask(recipe), model=model)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model.get_buffer("norm.num_batches_tracked") == 2 * 4 - skip


def test_an_epoch_without_a_step_has_no_loss(data: Path, tmp_path: Path) -> None:
    class NeverFinite(Classification):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return super().loss(output, target) * torch.nan

        def compute(self, metrics: MetricCollection) -> dict[str, float]:
            return super().compute(metrics) | {"val_loss": math.inf}

    recipe = quick_recipe(data, skip_nan=4)
    (epoch,) = run(recipe, tmp_path / "out", task=NeverFinite(recipe))
    assert math.isnan(epoch.train_loss)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["train_loss"] is summary["last"]["val_loss"] is None
    assert summary["skipped_steps"] == 4


class DeadlyTask(Classification):
    """A process that loads is dead before the first loss."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        victim = multiprocessing.active_children()[0].pid or 0
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        return super().loss(output, target)


def test_a_process_that_loads_dies_while_none_waits_for_it(data: Path) -> None:
    recipe = quick_recipe(data, workers=1)
    with pytest.raises(DataError, match=r"a process that loads images died \(.* Killed\.\); lower workers"):
        run(recipe, task=DeadlyTask(recipe))


def test_accumulation_is_a_larger_batch(data: Path) -> None:
    fields: dict[str, Any] = {"model": "tiny_plain", "opt": "sgd", "lr": 0.1, "crop_scale": 1.0, "epochs": 2}
    one = run(quick_recipe(data, batch_size=8, **fields))
    two = run(quick_recipe(data, batch_size=4, accumulate=2, **fields))
    for a, b in zip(one, two, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)


def test_the_moving_average_is_what_is_evaluated(data: Path) -> None:
    recipe = quick_recipe(data, ema_decay=1.0, epochs=2)  # stays at the first step's weights
    first, second = run(recipe)
    assert first.metrics["val_loss"] == second.metrics["val_loss"]


def test_ends_early_without_a_better_epoch(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class NeverBetter(Classification):
        def compute(self, metrics: MetricCollection) -> dict[str, float]:
            return {"top1": 0.5}

    recipe = quick_recipe(data, epochs=9, early_stop=2)
    assert len(run(recipe, task=NeverBetter(recipe))) == 3
    assert "ended early: no better top1 since epoch 1" in capsys.readouterr().err


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_channels_last_and_clipping(amp: str, data: Path) -> None:
    (epoch,) = run(quick_recipe(data, amp=amp, channels_last=True, clip_grad=1.0, lr_base_batch=16, opt="lamb"))
    assert epoch.train_loss < 2
    assert 0 <= epoch.lr < 1e-3


def test_the_gpu_that_is_asked_for_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cuda:1", "cuda", "cpu"):
        with join(torch.device(name)) as world:
            chosen.append(world.device)
    assert chosen == [torch.device(name) for name in ("cuda:1", "cuda:1", "cuda:0", "cuda:0", "cpu")]


def test_fbs_keeps_fewer_channels_by_and_by(data: Path) -> None:
    model = nn.Sequential(FBSConv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    fields: dict[str, Any] = {"fbs_density": 0.5, "fbs_epochs": 2, "ema_decay": 0.5, "opt": "sgd", "lr": 1e-9}
    plain, penalised = (
        run(quick_recipe(data, epochs=3, fbs_l1=weight, **fields), model=copy.deepcopy(model)) for weight in (0.0, 0.5)
    )
    assert penalised[0].train_loss > plain[0].train_loss + 0.1
    run(quick_recipe(data, epochs=2, **fields), model=model)
    assert model[0].density == 0.75
    run(quick_recipe(data, epochs=3, **fields), model=model)
    assert model[0].density == 0.5


def test_a_network_that_has_no_density_is_refused_before_it_trains(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TinyNet has no FBSConv2d, whose density could be set"):
        run(quick_recipe(data, fbs_density=0.5), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sched": "step", "decay_epochs": 2}, [1e-3, 1e-4, 1e-4, 1e-5]),
        ({"sched": "multistep", "decay_milestones": [1, 3]}, [1e-4, 1e-4, 1e-5, 1e-5]),
        ({"sched": "wsd", "decay_epochs": 1}, [1e-3, 1e-3, 1e-3, 0]),
    ],
)
def test_the_rate_falls_when_the_recipe_says_so(fields: dict[str, Any], expected: list[float], data: Path) -> None:
    rates = [epoch.lr for epoch in run(quick_recipe(data, epochs=4, lr=1e-3, warmup_epochs=0, **fields))]
    assert rates == pytest.approx(expected, abs=1e-7)


def test_the_rate_rises_as_long_as_tanh_may_warm_up(data: Path) -> None:
    recipe = quick_recipe(data, epochs=10, lr=1e-3, sched="tanh", warmup_epochs=9)
    rates = [epoch.lr for epoch in run(recipe)]
    assert rates[:9] == sorted(rates[:9])
    assert 1e-5 < rates[0] < rates[8] < 2e-5
    assert rates[9] == 0


def test_the_rate_that_is_written_is_that_of_the_highest_layer(data: Path) -> None:
    recipe = quick_recipe(data, model="tiny_pix_resnet", sched="constant", lr=1e-3, layer_decay=0.5)
    assert run(recipe)[0].lr == pytest.approx(1e-3)


def test_a_network_for_images_of_another_size_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="tiny_flat can't process images of 9×9 pixels: .*cannot be multiplied"):
        run(quick_recipe(data, model="tiny_flat", image_size=9))


def test_images_of_another_size_are_refused_after_a_training_too(data: Path, tmp_path: Path) -> None:
    run(quick_recipe(data, model="tiny_flat"), tmp_path)
    with pytest.raises(ValueError, match="tiny_flat can't process images of 9×9 pixels"):
        run(quick_recipe(data, model="tiny_flat", image_size=9, epochs=2), tmp_path, resume="auto")
    with pytest.raises(ValueError, match="tiny_flat can't process images of 9×9 pixels"):
        validate(tmp_path / "best.pt", image_size=9)
