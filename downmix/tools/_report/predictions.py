"""What a trained classifier says about held-out images."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from ...train.classification import Classification
from ...train.data import Batch, create_evaluation_loader
from ...train.distributed import World
from ...train.evaluation import evaluate

EXAMPLES = 6  # images that are shown whatever becomes of them
WORST = 12  # mistakes that are


@dataclass
class Sample:
    """An image and what the network made of it.

    Attributes:
        name: of the image.
        image (Tensor[3, H, W]): as the network got it.
        truth, predicted: classes.
        score, truth_score: of the predicted and of the true class, 0 to 1.
    """

    name: str
    image: Tensor
    truth: int
    predicted: int
    score: float
    truth_score: float


@dataclass
class Predictions:
    """What was found over all images.

    Attributes:
        total: see :class:`HeldOut`.
        confusion (Tensor[K, K]): how many images of a class (row) were taken for each (column).
        metrics: as in training.
        examples: a few, evenly spaced.
        worst: mistakes, the most confident first.
        bad: what was wrong with images that were left out.
    """

    total: int | None
    confusion: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    examples: list[Sample] = field(default_factory=list)
    worst: list[Sample] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return int(self.confusion.sum())


@dataclass
class HeldOut:
    """The images that a network is run over.

    Attributes:
        loader: gives them in batches.
        total: held-out images among which these are evenly spaced; None for a stream, whose first ones they are.
        count: those that the loader gives.
        name: of the image at a place.
    """

    loader: DataLoader[Any]
    total: int | None
    count: int
    name: Callable[[int], str]


class _First(IterableDataset[Any]):
    """The first samples of a stream."""

    def __init__(self, stream: Any, count: int):
        self.stream, self.count = stream, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.stream), self.count)


def held_out(task: Classification, limit: int | None) -> HeldOut:
    """``limit`` of the held-out images, evenly spaced; the first ones of a stream."""
    data: Any = task.val_data
    world = World(torch.device("cpu"))
    count = min(limit or len(data), len(data))
    if isinstance(data, IterableDataset):
        loader = create_evaluation_loader(_First(data, count), task.recipe, world)
        return HeldOut(loader, None, count, lambda place: f"image {place}")
    chosen = [i * len(data) // count for i in range(count)]
    loader = create_evaluation_loader(Subset(data, chosen), task.recipe, world)
    return HeldOut(loader, len(data), count, lambda place: "/".join(Path(data.name(chosen[place])).parts[-2:]))


def predict(
    model: nn.Module, task: Classification, images: HeldOut, on_batch: Callable[[], object] = lambda: None
) -> Predictions:
    """What ``model`` says about ``images``; ``on_batch`` is called after each batch."""
    found = Predictions(images.total, torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64))
    collector = _Collector(found, images)

    def see(batch: Batch, output: Any) -> None:
        collector.see(batch, output)
        on_batch()

    world = World(next(model.parameters()).device)
    found.metrics = evaluate(model, task, images.loader, world, on_batch=see) or {}
    found.worst = [sample for *_, sample in sorted(collector.worst, key=lambda mistake: mistake[:2], reverse=True)]
    return found


class _Collector:
    """Keeps of all batches no more than is shown."""

    def __init__(self, found: Predictions, images: HeldOut):
        self.found, self.name = found, images.name
        self.wanted = {i * images.count // EXAMPLES for i in range(EXAMPLES)}
        self.worst: list[tuple[float, int, Sample]] = []  # a heap; the place stands for samples, which have no order
        self.seen = 0

    def see(self, batch: Batch, output: Any) -> None:
        self.found.bad += batch.bad
        if output is None:
            return
        scores = output.float().softmax(1).cpu()
        best, predicted = scores.max(1)
        self.found.confusion.index_put_((batch.targets, predicted), torch.tensor(1), accumulate=True)
        places = batch.indices or range(self.seen, self.seen + len(scores))
        self.seen += len(scores)
        for i, place in enumerate(places):
            truth, said, score = int(batch.targets[i]), int(predicted[i]), float(best[i])
            is_worst = truth != said and (len(self.worst) < WORST or score > self.worst[0][0])
            if not is_worst and place not in self.wanted:
                continue
            sample = Sample(self.name(place), batch.images[i].clone(), truth, said, score, float(scores[i, truth]))
            if place in self.wanted:
                self.found.examples.append(sample)
            if is_worst:
                heapq.heappush(self.worst, (score, -place, sample))
                if len(self.worst) > WORST:
                    heapq.heappop(self.worst)
