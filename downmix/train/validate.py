"""A trained network on held-out samples."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.data import RealLabelsImagenet
from torch import Tensor, nn

from ..layers import set_density
from .checkpoint import CheckpointError, read_checkpoint
from .data import Batch, close, create_evaluation_loader
from .distributed import World, join
from .evaluation import evaluate
from .images import DataError
from .recipe import Recipe
from .recipe_files import FIELDS
from .task import Task
from .tasks import create_task
from .testing import draw
from .weights import read_weights

_FACTS = ("recipe", "class_names")


def read_facts(path: Path) -> tuple[Recipe, list[str]]:
    """The recipe by which `downmix train` made a checkpoint or safetensors file, and what its classes are called.

    The files of earlier versions don't say the latter.

    Raises:
        CheckpointError: if the file does not say.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), "pt") as file:
                facts = {name: json.loads(value) for name, value in (file.metadata() or {}).items() if name in _FACTS}
        except SafetensorError as error:
            raise CheckpointError(f"{path} can't be read as safetensors; it may be cut off ({error})") from error
    else:
        facts = read_checkpoint(path)
    if not facts.get("recipe"):
        raise CheckpointError(f"{path} does not say how it was trained; give a file that `downmix train` wrote")
    recipe = Recipe(**{name: value for name, value in facts["recipe"].items() if name in FIELDS})
    return recipe, facts.get("class_names", [])


def validate(
    path: Path, *, weights: str = "auto", real_labels: bool = False, pictures: Path | None = None, **fields: Any
) -> dict[str, float]:
    """Evaluates a file that `downmix train` wrote, alone or with the processes that torchrun started.

    Args:
        path: a checkpoint, or its weights as safetensors.
        weights: ``"model"``, ``"ema"``, or ``"auto"`` for the moving average where there is one.
        real_labels: also score against ImageNet's reassessed labels, as ``real_top1`` and ``real_top5``.
        pictures: folder for what the task draws of the samples and their predictions; None for nothing.
        **fields: fields of the recipe to change, such as ``data``.

    Returns:
        The task's metrics by name.

    Raises:
        ValueError: if the file, the data or a field can't be used.
    """
    # Its weights come from the file, so nothing else is to be loaded first.
    recipe = replace(read_facts(path)[0], pretrained=False, init=None, **fields)
    state = read_weights(path, weights)
    with join(recipe.torch_device()) as world:
        task = create_task(recipe)
        model = task.create_model()
        restore(model, state, recipe, path)
        model = model.to(world.device)
        loader = create_evaluation_loader(task.val_data, recipe, world)
        scores = _RealLabels(task, world) if real_labels else None
        try:
            metrics = evaluate(model, task, loader, world, nullcontext, on_batch=scores or (lambda batch, output: None))
        finally:
            close(loader)
        assert metrics is not None  # that is only so after a signal
        if pictures:
            draw(model, task, task.val_data, world, nullcontext, pictures)
        return metrics | (scores.compute() if scores else {})


def restore(model: nn.Module, state: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Makes ``model`` what it was when its training by ``recipe`` ended; ``path`` is where its tensors come from.

    Raises:
        CheckpointError: if they don't fit.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {recipe.model} with these data: {error}") from error
    if recipe.fbs_density:
        set_density(model, recipe.fbs_density)  # that of the end; no tensor says it


class _RealLabels:
    """timm's reassessed labels, each image found by its file's name, as processes see images in their own order."""

    def __init__(self, task: Task, world: World):
        self.world, data = world, task.val_data
        items = getattr(data, "items", None)
        self.files = [str(source) for source, _ in items] if isinstance(items, list) else []
        try:
            self.labels = RealLabelsImagenet(self.files).real_labels
            self.labels[Path(self.files[0]).name]
        except (AssertionError, KeyError, IndexError) as error:
            raise DataError(
                f"real labels belong to ImageNet's 50,000 validation images by their own names, got {len(self.files)}"
            ) from error
        self.counts = torch.zeros(3, dtype=torch.float64)

    def __call__(self, batch: Batch, output: Any) -> None:
        for index, best in zip(batch.indices, output.topk(5).indices.tolist(), strict=True):
            labels = self.labels[Path(self.files[index]).name]
            if labels:
                hit = [best[0] in labels, any(label in labels for label in best), True]
                self.counts += torch.tensor(hit, dtype=torch.float64)

    def compute(self) -> dict[str, float]:
        top1, top5, count = self.world.sum(*self.counts.tolist())
        return {"real_top1": top1 / count, "real_top5": top5 / count}
