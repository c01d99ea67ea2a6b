"""What a training needs to know about what is learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection

from .recipe import Recipe


class Task(ABC):
    """What is learned: data, network, loss and metrics.

    Attributes:
        deciding: the metric, higher is better, by which the best checkpoint is chosen.
        train_data, val_data: map-style sets (with ``__len__``) or streams of (image tensor, target), fully transformed;
            images of bytes are normalised by ImageNet's mean and deviation on the device.
            Their randomness comes from the global generators of Python, NumPy and torch, which the loader seeds for
            each sample. An image that can't be read raises ``images.BadImageError``.
        test_data: samples of a third kind, evaluated once training has ended; None for none.
        class_names: of the classes, in the order of their labels; what is written says them.

    Raises:
        DataError: by the constructor, where the data can't be used.
    """

    deciding: ClassVar[str]
    train_data: Dataset[Any]
    val_data: Dataset[Any]
    test_data: Dataset[Any] | None = None
    class_names: Sequence[str] = ()

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    @abstractmethod
    def create_model(self) -> nn.Module:
        """The network, freshly initialised from the global generators, on the CPU."""

    @abstractmethod
    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The training loss of a batch, a scalar: the mean over its samples."""

    @abstractmethod
    def create_metrics(self) -> MetricCollection:
        """torchmetrics' metrics, which are right over any number of processes."""

    @abstractmethod
    def update(self, metrics: MetricCollection, output: Any, target: Tensor) -> None:
        """Adds one evaluation batch to ``metrics``."""

    def compute(self, metrics: MetricCollection) -> dict[str, float]:
        """The values of ``metrics`` over all processes, by name; among them ``deciding``."""
        return {name: float(value) for name, value in metrics.compute().items()}

    def augment(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to a whole training batch on the device, such as mixup. Drawn from the global generators."""
        return images, targets

    def draw(self, predict: Callable[[Tensor], Any], data: Dataset[Any], folder: Path) -> None:  # noqa: B027, most tasks have nothing
        """Draws what shows how the network does on some samples of ``data`` into ``folder``.

        Args:
            predict: gives the network's output for a batch of images.
            data: ``test_data`` or ``val_data``.
        """
