"""An interrupted training ends with the weights of an undisturbed one."""

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from downmix.published import read_weights
from downmix.train import Interrupted, Recipe, train
from downmix.train.checkpoint import find_newest, read_checkpoint
from downmix.train.classification import Classification

from .helpers import make_folders, quick_recipe, run


def interrupted_at(step: int) -> Any:
    """An ``on_step`` that sends this process a signal once."""

    def on_step(done: int, total: int) -> None:
        if done == step:
            signal.raise_signal(signal.SIGTERM)

    return on_step


def final_state(folder: Path) -> dict[str, Any]:
    path = max(folder.glob("step-*.pt"))
    state = read_checkpoint(path)
    for epoch in state["progress"]["history"]:
        del epoch["seconds"]
    return {key: state[key] for key in ("model", "ema", "optimizer", "scaler", "progress", "processes")}


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folders(tmp_path_factory.mktemp("data"), count=15))


@pytest.fixture(scope="module")
def undisturbed(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(everything_random(data), folder)
    return final_state(folder)


def everything_random(data: str, workers: int = 0) -> Recipe:
    """Draws from every generator there is: augmentation, mixing, dropout, stochastic depth."""
    return quick_recipe(
        data, epochs=2, batch_size=4, accumulate=2, workers=workers, mixup=0.4, cutmix=1.0, aa="rand-m7-mstd0.5-inc1",
        reprob=0.5, drop=0.2, drop_path=0.1, ema_decay=0.9, hflip=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (2, 2), (3, 0), (4, 0), (5, 2), (6, 0)])
def test_resumed_from_any_step_it_ends_the_same(
    step: int,
    workers: int,
    data: str,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = everything_random(data, workers)
    with pytest.raises(Interrupted) as stop:
        train(recipe, tmp_path, on_step=interrupted_at(step))
    assert stop.value.code == 143
    said = " ".join(capsys.readouterr().err.split())
    assert f"stopped by SIGTERM after step {step}, which is written; go on with --resume auto" in said
    torch.rand(7)  # whatever happens in between
    run(recipe, tmp_path, resume="auto")
    assert_same(final_state(tmp_path), undisturbed)


@pytest.mark.parametrize(("before", "after"), [("none", "fp16"), ("fp16", "none")])
def test_goes_on_in_another_precision(before: str, after: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(quick_recipe(data, amp=before, epochs=2), tmp_path, on_step=interrupted_at(2))
    history = run(quick_recipe(data, amp=after, epochs=2), tmp_path, resume="auto")
    assert len(history) == 2


def test_what_the_new_recipe_says_counts(data: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"epochs": 3, "opt": "sgd", "sched": "poly", "min_lr": 1e-5}
    with pytest.raises(Interrupted):
        train(quick_recipe(data, **fields), tmp_path / "out", on_step=interrupted_at(2))
    changed = {"lr": 1e-2, "weight_decay": 0.5, "momentum": 0.1, "min_lr": 1e-3, "warmup_epochs": 2, "decay_rate": 2.0}
    recipe = quick_recipe(data, **(fields | changed))
    resumed = run(recipe, tmp_path / "out", resume="auto")
    anew = run(recipe, tmp_path / "anew")
    assert [epoch.lr for epoch in resumed] == [epoch.lr for epoch in anew]
    groups = [final_state(tmp_path / name)["optimizer"]["param_groups"] for name in ("out", "anew")]
    assert groups[0] == groups[1]


class Told(Classification):
    """Its epochs are as good as they are told to be."""

    def __init__(self, recipe: Recipe, values: list[float]):
        super().__init__(recipe)
        self.values = iter(values)

    def compute(self, metrics: MetricCollection) -> dict[str, float]:
        return {"top1": next(self.values)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_going_back_sets_aside_what_came_later(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = quick_recipe(data, model="tiny_plain", epochs=4, keep_every=1, keep_last=1)
    run(recipe, tmp_path, task=Told(recipe, [0.5, 0.4, 0.9, 0.8]))
    common = {"epoch-0003.pt", "epoch-0004.pt", "last.safetensors", "epochs.csv", "summary.json", "curves.png"}
    common |= {path.name for path in tmp_path.glob("step-*.pt")}
    later = common | {"best.pt", "best.safetensors"}
    for number, (values, best) in enumerate([([0.3, 0.2], 1), ([0.1, 0.6], 4)], 1):
        before = contents(tmp_path)
        run(recipe, tmp_path, resume=str(tmp_path / "epoch-0002.pt"), task=Told(recipe, values))
        assert f"what came later is now in {tmp_path}/abandoned-{number}" in capsys.readouterr().err
        assert contents(tmp_path / f"abandoned-{number}") == {name: before[name] for name in later}
        with open(tmp_path / "epochs.csv") as file:
            assert [float(row["top1"]) for row in csv.DictReader(file)] == [0.5, 0.4, *values]
        assert json.loads((tmp_path / "summary.json").read_text())["best_epoch"] == best
        saved = read_checkpoint(tmp_path / "best.pt")
        assert saved["progress"]["epoch"] == best
        assert_same(read_weights(tmp_path / "best.safetensors"), dict(saved["model"]))
        later = common  # the best that was brought back is not of later


def test_the_best_of_later_does_not_count_where_that_of_before_is_gone(data: str, tmp_path: Path) -> None:
    recipe = quick_recipe(data, model="tiny_plain", epochs=4, keep_every=2)
    run(recipe, tmp_path, task=Told(recipe, [0.5, 0.4, 0.9, 0.8]))
    run(recipe, tmp_path, resume=str(tmp_path / "epoch-0002.pt"), task=Told(recipe, [0.3, 0.2]))
    assert not list(tmp_path.glob("best.*"))


def test_what_was_gone_back_from_stays_behind_after_a_death(data: str, tmp_path: Path) -> None:
    def die(done: int, total: int) -> None:
        raise MemoryError

    recipe = quick_recipe(data, model="tiny_plain", epochs=2, checkpoint_every_steps=1, keep_last=9)
    run(recipe, tmp_path)
    path = tmp_path / "step-00000002.pt"
    with pytest.raises(MemoryError):
        train(recipe, tmp_path, resume=str(path), on_step=die)
    found = find_newest(tmp_path, lambda text: None)
    assert found
    assert found[0] == path


@pytest.mark.parametrize("opt", ["lamb", "lookahead_sgd"])
def test_steps_that_an_optimiser_counts_go_on(opt: str, data: str, tmp_path: Path) -> None:
    recipe = quick_recipe(data, epochs=3, opt=opt)
    run(recipe, tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "out", on_step=interrupted_at(4))
    run(recipe, tmp_path / "out", resume="auto")
    assert_same(final_state(tmp_path / "out"), final_state(tmp_path / "undisturbed"))


@pytest.mark.parametrize("opt", ["sgd", "lion"])  # timm's lion takes adamw's state without a word
def test_another_optimiser_is_refused(opt: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(quick_recipe(data), tmp_path)
    with pytest.raises(ValueError, match=f"keeps the state of opt adamw, the recipe has opt {opt}; .*--init"):
        train(quick_recipe(data, opt=opt, epochs=2), tmp_path, resume="auto")
    assert "this goes on with" not in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"weight_decay": 0.0}, {"layer_decay": 0.5}], ids=list)
def test_other_groups_of_the_optimiser_are_refused_by_the_field_that_makes_them(
    changed: dict[str, float], data: str, tmp_path: Path
) -> None:
    run(quick_recipe(data, model="test_resnet", image_size=32), tmp_path)
    ((name, value),) = changed.items()
    recipe = quick_recipe(data, model="test_resnet", image_size=32, epochs=2, **changed)
    with pytest.raises(ValueError, match=f"the recipe has {name} {value}; give --{name} .* start anew .*--init"):
        train(recipe, tmp_path, resume="auto")


@pytest.mark.parametrize("model", ["tiny_plain", "tiny_resnet"])
def test_another_network_is_refused_in_a_short_sentence(model: str, data: str, tmp_path: Path) -> None:
    run(quick_recipe(data), tmp_path)
    sentence = (
        r"^the checkpoint is of another training and does not fit this one; give the same recipe "
        r"\(.* (missing|unexpected): .*\)$"
    )
    with pytest.raises(ValueError, match=sentence) as refusal:
        train(quick_recipe(data, model=model), tmp_path, resume="auto")
    assert len(str(refusal.value).replace(str(tmp_path), "")) < 400


def test_fields_that_differ_are_named_in_the_recipe_s_order(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(quick_recipe(data), tmp_path)
    changes: dict[str, Any] = {"epochs": 2, "lr": 0.5, "weight_decay": 0.1, "smoothing": 0.2, "hflip": 0.5}
    run(quick_recipe(data, **changes, log_every=3), tmp_path, resume="auto")  # how often is logged makes no difference
    said = re.findall(r"was made with (\w+) \S+; this goes on with (\S+)", capsys.readouterr().err)
    assert said == [(name, str(value)) for name, value in changes.items()]


def test_the_weights_it_started_from_may_be_gone(data: str, tmp_path: Path) -> None:
    run(quick_recipe(data, model="tiny_plain"), tmp_path / "first")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((tmp_path / "first" / "last.safetensors").read_bytes())
    recipe = quick_recipe(data, model="tiny_plain", epochs=2, init=str(weights))
    run(recipe, tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "out", on_step=interrupted_at(1))
    weights.unlink()
    run(recipe, tmp_path / "out", resume="auto")
    assert_same(final_state(tmp_path / "out"), final_state(tmp_path / "undisturbed"))
    with pytest.raises(FileNotFoundError, match="weights.safetensors"):
        train(recipe, tmp_path / "new")
