"""A network on the held-out samples, each counted once over all processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from .data import Batch
from .distributed import World, is_lost_process
from .images import NoScoreError
from .recipe import Recipe
from .signals import Signals
from .task import Task

_AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(recipe: Recipe, world: World) -> Any:
    """What the recipe asks for, as a context."""
    dtype = _AMP[recipe.amp]
    return torch.autocast(world.device.type, dtype=dtype) if dtype else nullcontext()


def to_device(batch: Batch, recipe: Recipe, world: World) -> tuple[Tensor, Tensor]:
    """Images as networks take them, and targets."""
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    images = batch.images.to(world.device, non_blocking=True, memory_format=layout)
    return normalized(images), batch.targets.to(world.device, non_blocking=True)


def normalized(images: Tensor) -> Tensor:
    """Images of bytes, normalised bit for bit as timm's transforms do it; others as they are."""
    if images.dtype != torch.uint8:
        return images
    mean, std = _statistics(images.device)
    return images.float().div_(255).sub_(mean).div_(std)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return mean.to(device), std.to(device)


@contextmanager
def misfit_told(name: str, images: Tensor, is_first: bool) -> Iterator[None]:
    """Says it in a sentence where the network ``name`` can't process the first images that it gets.

    With later ones it has another reason, as it has where another process has ended.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if not is_first or isinstance(error, dist.DistError) or is_lost_process(error):
            raise
        size = "×".join(map(str, images.shape[2:]))
        raise ValueError(f"{name} can't process images of {size} pixels: {error}") from error


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task,
    loader: DataLoader[Any],
    world: World,
    *,
    signals: Signals | None = None,
    on_batch: Callable[[Batch, Any], None] | None = None,
) -> dict[str, float] | None:
    """The task's metrics over all of ``loader``; None where a signal came first.

    Args:
        model: is switched to evaluation mode.
        task: its recipe says how images travel to the device, and in what precision the network runs.
        on_batch: sees each batch and what the network made of it.

    Raises:
        NoScoreError: by all processes, where nothing of the samples counts.
        ValueError: if the network can't process images of that size.
    """
    world.share_buffers(model)
    model.eval()
    metrics, count = task.create_metrics().to(world.device), 0
    for batch in _in_step(loader):
        if signals and not _is_stream(loader) and world.agree(signals.received)[0]:
            return None
        if batch is None:
            continue
        output, count = None, count + len(batch.images)
        if len(batch.images):
            images, targets = to_device(batch, task.recipe, world)
            misfit = misfit_told(task.recipe.model, images, is_first=count == len(images))
            with mixed_precision(task.recipe, world), misfit:
                output = model(images)
            task.update(metrics, output, targets)
        if on_batch:
            on_batch(batch, output)
    if not world.sum(count)[0]:
        raise NoScoreError("none of the images can be read; check the folder and its files")
    return task.compute(metrics)


def _in_step(loader: DataLoader[Any]) -> Iterator[Batch | None]:
    """The batches, and None for processes that have one less, as all have to take part in agreeing on a signal."""
    if _is_stream(loader):
        yield from loader
        return
    batches = iter(loader)
    sampler: Any = loader.batch_sampler
    for _ in range(sampler.rounds):
        yield next(batches, None)


def _is_stream(loader: DataLoader[Any]) -> bool:
    return isinstance(loader.dataset, IterableDataset)
