"""A trained network on held-out samples."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.data import RealLabelsImagenet

from .checkpoint import CheckpointError
from .data import Batch, close, create_evaluation_loader, deaths_told
from .distributed import World, join
from .evaluation import evaluate
from .images import DataError, NoScoreError
from .output import Output
from .sources import with_folder
from .task import Task
from .tasks import create_task
from .testing import draw
from .weights import check_classes, read_trained, restore
from .writable import check_folder


def validate(
    path: str | Path, *, weights: str = "auto", real_labels: bool = False, pictures: Path | None = None, **fields: Any
) -> dict[str, float]:
    """Evaluates a file that `downmix train` wrote, alone or with the processes that torchrun started.

    Args:
        path: a checkpoint, or its weights as safetensors.
        weights: ``"model"``, ``"ema"``, or ``"auto"`` for the moving average where there is one.
        real_labels: also score against ImageNet's reassessed labels, as ``real_top1`` and ``real_top5``.
        pictures: folder for what the task draws of the samples and their predictions; None for nothing.
        **fields: fields of the recipe to change, such as ``data``. The precision is that of the training, but for
            fp16 on a CPU, which is slow there: it takes float32 unless ``amp`` is given.

    Returns:
        The task's metrics by name.

    Raises:
        ValueError: if the file, the data or a field can't be used, or ``pictures`` can't be written.
    """
    path = Path(path)
    # Its weights come from the file, so nothing else is to be loaded first.
    trained = read_trained(path, weights)
    if trained.recipe is None:
        raise CheckpointError(f"{path} does not say how it was trained; give a file that `downmix train` wrote")
    recipe = replace(trained.recipe, pretrained=False, init=None, **with_folder(fields))
    if "amp" not in fields and recipe.amp == "fp16" and recipe.torch_device().type == "cpu":
        recipe = replace(recipe, amp="none")
    with join(recipe.torch_device()) as world:
        with world.together():
            if pictures and world.is_first:
                check_folder(pictures, "pictures")
            task = create_task(recipe)
            check_classes(trained.class_names, task.class_names, path)
            model = task.create_model()
            restore(model, trained, path)
            loader = create_evaluation_loader(task.val_data, recipe, world)
            scores = _RealLabels(task, world) if real_labels else None
        model, out = model.to(world.device), Output(None, recipe, world, Console(stderr=True))

        if isinstance(task.val_data, Sized):  # of a folder without a test folder it is every fifth image
            out.say(f"evaluating {len(task.val_data):,} held-out images of {recipe.data}")

        def on_batch(batch: Batch, output: Any) -> None:
            out.note_bad(batch.bad)
            if scores:
                scores(batch, output)

        try:
            with deaths_told():
                metrics = evaluate(model, task, loader, world, on_batch=on_batch)
            assert metrics is not None  # that is only so after a signal
            metrics |= scores.compute() if scores else {}
        except NoScoreError as error:
            if not world.is_first:
                raise SystemExit(2) from error
            raise
        finally:
            close(loader)
        out.share_bad()
        if pictures:
            draw(model, task, task.val_data, world, pictures)
        return metrics


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
        if output is None:  # none of the batch's images could be read
            return
        for index, best in zip(batch.indices, output.topk(5).indices.tolist(), strict=True):
            labels = self.labels[Path(self.files[index]).name]
            if labels:
                hit = [best[0] in labels, any(label in labels for label in best), True]
                self.counts += torch.tensor(hit, dtype=torch.float64)

    def compute(self) -> dict[str, float]:
        top1, top5, count = self.world.sum(*self.counts.tolist())
        if not count:
            raise NoScoreError(
                f"none of the {len(self.files)} images can be read and has a real label; check their files"
            )
        return {"real_top1": top1 / count, "real_top5": top5 / count}
