"""Batches: which samples, in which order, and with which randomness, so that any moment can be gone back to."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from .distributed import World
from .images import BadImageError, DataError
from .recipe import Recipe

_MOST_BAD_IN_A_ROW = 20


class Batch(NamedTuple):
    """What the loaders give.

    Attributes:
        images, targets: stacked samples.
        indices: which samples of the data set these are; empty for streams.
        bad: what was wrong with images that had to be left out.
    """

    images: Tensor
    targets: Tensor
    indices: list[int]
    bad: list[str]


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """This process's part of every batch of one epoch, as (epoch, index).

    The order is a function of ``seed`` and ``epoch``. Step s takes the s-th ``global_batch`` samples of it, of which
    every process takes every ``world.size``-th: together they see what one process with their global batch sees.
    The samples at the end that fill no global batch are left out of the epoch.
    """

    def __init__(self, count: int, recipe: Recipe, world: World):
        self.count, self.seed, self.world = count, recipe.seed, world
        self.batch, self.accumulate = recipe.batch_size, recipe.accumulate
        self.global_batch = recipe.batch_size * recipe.accumulate * world.size
        self.steps = count // self.global_batch
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        whole = self.batch * self.world.size
        for first in range(self.start * self.global_batch, self.steps * self.global_batch, whole):
            yield [(self.epoch, index) for index in order[first + self.world.rank : first + whole : self.world.size]]


class EvaluationBatches(Sampler[list[tuple[int, int]]]):
    """This process's part of the held-out samples: over all processes each sample once, none twice."""

    def __init__(self, count: int, recipe: Recipe, world: World):
        self.mine, self.batch = range(world.rank, count, world.size), recipe.batch_size
        self.rounds = -(-len(range(0, count, world.size)) // recipe.batch_size)  # of the process that has most

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.mine), self.batch):
            yield [(0, index) for index in self.mine[first : first + self.batch]]


class Repeatable(Dataset[Any]):
    """Gives each sample randomness of its own, a function of seed, epoch and index, not of who loads it or when.

    Args:
        dataset: a map-style data set of (image, target).
        seed: of all samples.
        on_bad: what becomes of an image that can't be read: ``"stop"`` raises, ``"next"`` takes the next one,
            ``"skip"`` leaves it out.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, on_bad: str):
        self.dataset, self.seed, self.on_bad = dataset, seed, on_bad

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Any, int, list[str]]]:
        """A batch at once, as loaders ask for it: to go back to NumPy's state takes longer than many samples do."""
        with _randomness_kept():
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, index: int) -> tuple[Any, int, list[str]]:
        bad: list[str] = []
        for _ in range(_MOST_BAD_IN_A_ROW):
            try:
                _seed(f"{self.seed} {epoch} {index}")
                return self.dataset[index], index, bad
            except BadImageError as error:
                if self.on_bad == "stop":
                    raise
                bad.append(str(error))
                if self.on_bad == "skip":
                    return None, index, bad
                index = (index + 1) % len(self.dataset)  # type: ignore[arg-type]
        raise DataError(f"{_MOST_BAD_IN_A_ROW} images in a row can't be read, the last one: {bad[-1]}")


def _seed(name: str) -> None:
    random.seed(name)
    np.random.seed(random.getrandbits(32))
    # Not torch.manual_seed, which also reaches for every GPU.
    torch.default_generator.manual_seed(random.getrandbits(63))


@contextmanager
def _randomness_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def create_training_loader(
    dataset: Dataset[Any], recipe: Recipe, world: World
) -> tuple[DataLoader[Any], TrainingBatches]:
    """The loader of training batches, and what says which these are; :func:`set_position` says where it starts.

    Raises:
        DataError: where the data don't fill one global batch.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if isinstance(dataset, IterableDataset):
        count *= world.size  # timm's streams have the length of this process's part
    batches = TrainingBatches(count, recipe, world)
    if not batches.steps:
        raise DataError(
            f"{batches.count} training images don't fill one batch of {batches.global_batch}"
            f"{_factors(recipe, world)}; lower batch_size"
        )
    on_bad = "stop" if recipe.on_bad_image == "stop" else "next"
    return _loader(dataset, recipe, world, on_bad, batches), batches


def create_evaluation_loader(dataset: Dataset[Any], recipe: Recipe, world: World) -> DataLoader[Any]:
    """The loader of held-out batches; every sample once over all processes."""
    batches = EvaluationBatches(len(dataset), recipe, world)  # type: ignore[arg-type]
    return _loader(dataset, recipe, world, recipe.on_bad_image, batches)


def set_position(loader: DataLoader[Any], batches: TrainingBatches, epoch: int, step: int) -> None:
    """Lets ``loader`` start at a step of an epoch. A stream has no steps to skip: it starts at its beginning."""
    data: Any = loader.dataset
    if isinstance(loader.dataset, IterableDataset):
        data.set_epoch(epoch)
    batches.epoch, batches.start = epoch, step


def close(loader: DataLoader[Any]) -> None:
    """Ends the processes that load. Left to the garbage collector they are sent SIGTERM, which they don't hear."""
    iterator: Any = loader._iterator  # only there with persistent workers
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


@contextmanager
def deaths_told() -> Iterator[None]:
    """Says it in a sentence where a process that loads died. torch notices at any moment, not only while it loads."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DataError(
            f"a process that loads images died ({str(error).splitlines()[0].strip()}); lower workers"
        ) from error


def _loader(dataset: Any, recipe: Recipe, world: World, on_bad: str, batches: Sampler[Any]) -> DataLoader[Any]:
    options: dict[str, Any] = {
        "num_workers": recipe.workers,
        "persistent_workers": recipe.workers > 0,
        "pin_memory": world.device.type == "cuda",
        "worker_init_fn": _begin_worker,
        # Of its own, so that starting an epoch draws nothing from the generator that training draws from.
        "generator": torch.Generator().manual_seed(recipe.seed),
    }
    if not isinstance(dataset, IterableDataset):
        dataset = Repeatable(dataset, recipe.seed, on_bad)
        return DataLoader(dataset, batch_sampler=batches, collate_fn=_collate, **options)
    training = isinstance(batches, TrainingBatches)
    return DataLoader(dataset, batch_size=recipe.batch_size, drop_last=training, collate_fn=_collate_stream, **options)


def _collate(samples: list[tuple[Any, int, list[str]]]) -> Batch:
    bad = [text for *_, texts in samples for text in texts]
    good = [(pair, index) for pair, index, _ in samples if pair is not None]
    if not good:
        return Batch(torch.empty(0), torch.empty(0), [], bad)
    images, targets = default_collate([pair for pair, _ in good])
    return Batch(images, targets, [index for _, index in good], bad)


def _collate_stream(samples: list[tuple[Any, Any]]) -> Batch:
    images, targets = default_collate(samples)
    return Batch(images, targets, [], [])


def _begin_worker(worker_id: int) -> None:
    # Ctrl-C and torchrun reach the whole process group; the step that is finished still needs its loader.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_training, daemon=True).start()


def _end_with_the_training() -> None:
    """torch asks a worker's parent, which with forkserver, Python's way from 3.14 on, is a server that never ends."""
    training = multiprocessing.parent_process()
    if training:
        training.join()
        os._exit(1)


def _factors(recipe: Recipe, world: World) -> str:
    if recipe.accumulate == world.size == 1:
        return ""
    return f" ({recipe.batch_size} × accumulate {recipe.accumulate} × {world.size} processes)"
