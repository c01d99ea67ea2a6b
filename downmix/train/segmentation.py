"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from ._segmentation_pictures import create_palette, write_picture
from ._segmentation_transforms import evaluation_transform, to_picture, training_transform
from .images import BadImageError, DataError
from .network import convert_network, recompute_activations
from .pspnet import create_segmenter, start_segmenter_from
from .recipe import Recipe
from .segmentation_data import (
    SegmentationImages,
    cityscapes_labels,
    find_pairs,
    is_cityscapes,
    labels_of_values,
    largest_size,
)
from .segmentation_scores import ClassIoU, SegmentationLoss
from .task import Task

# Fields that would do nothing here; of those that are on if left out (smoothing, crop_scale) nobody can tell.
_OF_CLASSIFICATION = ("mixup", "cutmix", "bce_loss", "aa", "reprob", "crop_padding")


class Segmentation(Task):
    """A class for each pixel, by PSPNet over the recipe's network.

    Args:
        recipe: how; ``data_dir``, or ``data`` without it, is a folder as :func:`~.segmentation_data.find_pairs` says.
    """

    deciding = "miou"

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        part = recipe.segmentation
        for name in _OF_CLASSIFICATION:
            if getattr(recipe, name):
                raise ValueError(f"{name} is for classification alone; leave it out of a segmentation")
        if not part.classes:
            raise DataError("a segmentation needs the names of its classes; give segmentation.classes")
        self.class_names = part.classes
        self.palette = create_palette(len(part.classes), part.colours)
        root = Path(recipe.data_dir or recipe.data)
        if is_cityscapes(root):
            self.labels = cityscapes_labels(self.class_names)
        else:
            self.labels = labels_of_values(len(self.class_names), part.void)
        (height, width), (low, high) = part.crop, part.scale
        training = training_transform((height, width), (low, high), part.rotate, recipe.hflip, part.blur)
        self.train_data = SegmentationImages(find_pairs(root, "train"), self.labels, training)
        # The recipe's default is timm's word.
        validation = "val" if recipe.val_split == "validation" else recipe.val_split
        self.val_data, self.test_data = self._held_out(root, validation), self._held_out(root, "test")
        self.criterion = SegmentationLoss(part.auxiliary_weight)

    def _held_out(self, root: Path, split: str) -> SegmentationImages:
        pairs = find_pairs(root, split)
        return SegmentationImages(pairs, self.labels, evaluation_transform(largest_size(pairs)))

    def create_model(self) -> nn.Module:
        return build_segmenter(self.recipe)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        return self.criterion(output, target)

    def create_metrics(self) -> MetricCollection:
        return MetricCollection({"iou": ClassIoU(self.class_names), "val_loss": MeanMetric(nan)})  # NaN stays NaN

    def update(self, metrics: MetricCollection, output: Tensor, target: Tensor) -> None:
        metrics["iou"].update(output, target)
        metrics["val_loss"].update(self.criterion(output, target), weight=len(target))

    def draw(self, predict: Callable[[Tensor], Tensor], data: Any, folder: Path) -> None:
        """Writes pictures of predictions on a few images, evenly spread over ``data``."""
        folder.mkdir(parents=True, exist_ok=True)
        count = min(self.recipe.segmentation.pictures, len(data))
        for i in range(count):
            for index in range(i * len(data) // count, (i + 1) * len(data) // count):
                with suppress(BadImageError):  # evaluation has named it, and left it out as the recipe wants; the next
                    image, truth = data[index]
                    labels = predict(image[None])[0].argmax(0).cpu()
                    path = folder / f"{data.pairs[index][0].stem}.png"
                    write_picture(path, to_picture(image), truth, labels, self.class_names, self.palette)
                    break


def build_segmenter(recipe: Recipe) -> nn.Module:
    """The network that ``recipe`` asks for.

    Raises:
        ValueError: if a name, a conversion or the starting weights don't fit.
    """
    part = recipe.segmentation
    model = create_segmenter(
        recipe.model,
        len(part.classes),
        output_stride=part.output_stride,
        auxiliary=part.auxiliary_weight > 0,
        window=(part.window[0], part.window[1]) if part.window else None,
        drop=recipe.drop,
        drop_path=recipe.drop_path,
        pretrained=recipe.pretrained,
    )
    if recipe.layer_decay and not model.layers:
        raise ValueError(f"timm does not know the layers of {recipe.model}; leave layer_decay out")
    encoder: Any = model.network.encoder
    encoder.model = convert_network(encoder.model, replace(recipe, image_size=max(part.crop)))
    if recipe.init:
        start_segmenter_from(model, Path(recipe.init))
    if recipe.grad_checkpointing:
        recompute_activations(encoder.model, recipe)
    return model
