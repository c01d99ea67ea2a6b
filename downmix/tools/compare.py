"""`downmix compare`: a network and its cheaper twins, trained the same way and set side by side."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from .._cudnn import convolutions_by_time
from ..cost import Cost, measure_cost
from ..train import Epoch, Recipe, train
from ..train.checkpoint import check_unused
from ..train.classification import Classification
from ..train.data import Batch
from ..train.distributed import World
from ..train.network import build_network
from ..train.sources import Split, load_data
from ..train.state import State
from ..train.update import Update
from ..train.writable import check_folder
from . import _comparison_report as report
from ._console import progress_bars, wide_console
from ._environment import environment
from ._recipe_option import add_recipe, to_recipe
from ._timing import interleave, summarize

HELP = "Train a network and its cheaper twins the same way, and show what was gained and what it cost."
LATENCY_BATCHES = (1, 8)
_ROUNDS = {"latency": 40, "training": 10}


@dataclass
class Run:
    """One training: which network, which seed, and what every epoch gave."""

    model: str
    seed: int
    epochs: list[Epoch]

    @property
    def top1(self) -> float:
        """Accuracy (0 to 1) on the held-out images after the last epoch; no epoch is picked."""
        return self.epochs[-1].metrics["top1"]


@dataclass
class Comparison:
    """All that `downmix compare` measured; the first of ``models`` is the baseline.

    Attributes:
        costs: by network, see :class:`downmix.cost.Cost`.
        latency_ms: by network and batch size: min, median, p20, p80.
        training_ms: by network: the same for one step of ``recipe`` with ``recipe.batch_size`` images.
        runs: the trainings that finished.
    """

    models: list[str]
    seeds: list[int]
    recipe: Recipe
    environment: dict[str, Any]
    costs: dict[str, Cost] = field(default_factory=dict)
    latency_ms: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    training_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def training_mode(self) -> str:
        """In which precision and layout a training step is timed."""
        precision = "float32" if self.recipe.amp == "none" else self.recipe.amp
        return f"{precision}, {'channels_last' if self.recipe.channels_last else 'NCHW'}"

    def top1(self, model: str) -> list[float]:
        return [run.top1 for run in self.runs if run.model == model]

    def verdict(self, model: str) -> str:
        """Whether the accuracies of ``model`` and the baseline differ by more than the seeds do."""
        ours, theirs = self.top1(model), self.top1(self.models[0])
        if min(len(ours), len(theirs)) < 2:
            return "needs two seeds or more"
        difference = statistics.mean(ours) - statistics.mean(theirs)
        spread = (statistics.variance(ours) + statistics.variance(theirs)) ** 0.5
        relation = "more than" if abs(difference) > spread else "inside"
        return f"{100 * difference:+.2f} points, {relation} the seeds' ±{100 * spread:.2f}"


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "baseline", type=str, help="the network to compare with, by its name in timm or NAME:key=value,…"
    )
    parser.add_argument("candidates", nargs="+", type=str, help="one or more networks that should be cheaper")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="each network is trained once for each seed"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/compare"),
        help="folder of the results, with a folder a training in it",
    )
    parser.add_argument(
        "--resume",
        choices=["", "auto"],
        default="",
        help="auto keeps the trainings that finished in the output folder and goes on where one was stopped",
    )
    add_recipe(parser, skip={"model", "seed", "task"})


def run(args: Any) -> None:
    compare(args.baseline, args.candidates, to_recipe(args), seeds=args.seeds, output=args.output, resume=args.resume)


def compare(
    baseline: str,
    candidates: list[str],
    recipe: Recipe,
    *,
    seeds: list[int],
    output: Path,
    resume: str = "",
    console: Console | None = None,
) -> Comparison:
    """Trains each network once a seed under ``recipe``, measures its cost, and writes and prints the comparison.

    Args:
        baseline, candidates: names that timm knows.
        recipe: the same for all.
        seeds: of initialisation, shuffling and augmentation.
        output: folder for ``compare.json``, ``compare.csv``, ``compare.png``, and one folder a training, as
            `downmix train` writes it. The JSON is written anew after each training.
        resume: ``"auto"`` goes on with the trainings in ``output``; costs and times are measured anew.
        console: where the progress and the table go; standard output if None.

    Raises:
        ValueError: if a name, the data or ``output`` can't be used, or that holds trainings and ``resume`` is empty.
        KeyboardInterrupt, Interrupted: passed on after the files are written.
    """
    models = [baseline, *candidates]
    if len(set(models)) != len(models):
        raise ValueError(f"each network can stand once in a comparison, got {', '.join(models)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, got {seeds}")
    recipe.check_training()
    for seed in seeds:  # now, not after hours of others
        replace(recipe, seed=seed)
    check_folder(output)
    if not resume:
        for folder in (_folder(output, name, seed) for seed in seeds for name in models):
            check_unused(folder)
    console = console or wide_console()
    split = load_data(recipe)
    result = Comparison(models, seeds, recipe, environment(recipe.torch_device()))
    try:
        with progress_bars(console) as progress:
            _measure(result, split, progress)
            _train_all(result, split, output, resume, progress)
    finally:
        if result.runs:  # after an interrupt too
            report.write(result, output)
            console.print(report.table(result))
            console.print(
                f"results: {output}/compare.json, compare.csv\npicture: {output / 'compare.png'}", soft_wrap=True
            )
    return result


def _folder(output: Path, name: str, seed: int) -> Path:
    return output / re.sub(r"[^\w.,-]", "-", f"{name}-seed{seed}")


def _create(result: Comparison, name: str, split: Split) -> nn.Module:
    return build_network(replace(result.recipe, model=name), split.num_classes).to(result.recipe.torch_device())


@convolutions_by_time()
def _measure(result: Comparison, split: Split, progress: Progress) -> None:
    recipe, device = result.recipe, result.recipe.torch_device()
    size = (3, recipe.image_size, recipe.image_size)
    networks = {name: _create(result, name, split) for name in result.models}
    task = progress.add_task("measuring cost and latency", total=len(LATENCY_BATCHES) + 2)
    for name, network in networks.items():
        try:
            result.costs[name] = measure_cost(network, size)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(f"{name} can't process images of {size[1]}×{size[2]} pixels: {error}") from error
        result.latency_ms[name] = {}
    progress.advance(task)
    for batch in LATENCY_BATCHES:
        images = torch.randn(batch, *size, device=device)
        for name, summary in _time(
            {name: _inference(net, images) for name, net in networks.items()}, "latency"
        ).items():
            result.latency_ms[name][batch] = summary
        progress.advance(task)
    images = torch.randn(recipe.batch_size, *size, device=device)
    labels = torch.randint(split.num_classes, (recipe.batch_size,), device=device)
    batch = Batch(images, labels, indices=[], bad=[])
    steps = {name: _training_step(net, recipe, split, batch) for name, net in networks.items()}
    result.training_ms = _time(steps, "training")
    progress.advance(task)


def _time(calls: dict[str, Any], what: str) -> dict[str, dict[str, float]]:
    return {name: summarize(times) for name, times in interleave(calls, _ROUNDS[what]).items()}


def _inference(network: nn.Module, images: torch.Tensor) -> Any:
    def call() -> None:
        network.eval()
        with torch.inference_mode():
            network(images)

    return call


def _training_step(network: nn.Module, recipe: Recipe, split: Split, batch: Batch) -> Any:
    """What the recipe does with a batch that is on its device, but for ``torch.compile``."""
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    world = World(recipe.torch_device())
    state = State(network, recipe, world, steps=1, global_batch=recipe.batch_size)
    update = Update(network, state, Classification(recipe, split), recipe, world)
    network.train()
    return lambda: update([batch])


def _train_all(result: Comparison, split: Split, output: Path, resume: str, progress: Progress) -> None:
    runs = [(seed, name) for seed in result.seeds for name in result.models]  # a seed's networks side by side
    overall = progress.add_task("trainings", total=len(runs))
    for seed, name in runs:
        task = progress.add_task(f"  {name}, seed {seed}", total=None)
        recipe = replace(result.recipe, model=name, seed=seed)
        epochs = train(
            recipe,
            _folder(output, name, seed),
            resume=resume,
            task=Classification(recipe, split),
            console=progress.console,
            on_step=lambda done, total, task=task: progress.update(task, completed=done, total=total),
        )
        result.runs.append(Run(name, seed, epochs))
        report.write_json(result, output)
        progress.remove_task(task)
        progress.console.print(f"{name}, seed {seed}: top-1 {100 * epochs[-1].metrics['top1']:.2f} %")
        progress.advance(overall)
