"""A trained network on a task's test samples, in figures and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .data import close, create_evaluation_loader
from .distributed import World
from .evaluation import evaluate, mixed_precision
from .images import NoScoreError
from .output import Output
from .signals import Signals
from .task import Task


def run_test(model: nn.Module, task: Task, world: World, out: Output, signals: Signals) -> bool:
    """Evaluates ``model`` on the test samples, where ``task`` has some, and writes and draws what that gives.

    Returns:
        False where a signal came first.
    """
    if task.test_data is None:
        return True
    loader = create_evaluation_loader(task.test_data, task.recipe, world)
    try:
        metrics = evaluate(
            model, task, loader, world, signals=signals, on_batch=lambda batch, _: out.note_bad(batch.bad)
        )
    except NoScoreError as error:  # no reason to fail a training that is done
        out.warn(f"there are no figures on the test samples: {error}")
        return True
    finally:
        close(loader)
    out.share_bad()
    if metrics is None:
        return False
    out.write_test(metrics)
    if out.folder:
        draw(model, task, task.test_data, world, out.folder / "pictures")
    return True


def draw(model: nn.Module, task: Task, data: Dataset[Any], world: World, folder: Path) -> None:
    """Lets ``task`` draw what ``model`` makes of some of ``data``; the first process alone."""

    @torch.inference_mode()
    def predict(images: Tensor) -> Any:
        with mixed_precision(task.recipe, world):
            return model(images.to(world.device))

    if world.is_first:
        model.eval()
        task.draw(predict, data, folder)
