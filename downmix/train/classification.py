"""Image classification."""

from __future__ import annotations

from math import nan
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup, create_transform
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from .images import DataError
from .network import build_network
from .recipe import Recipe
from .sources import Split, load_data
from .task import Task


class Classification(Task):
    """One label an image.

    Args:
        recipe: how.
        split: the data, where they are open already.
    """

    deciding = "top1"

    def __init__(self, recipe: Recipe, split: Split | None = None):
        super().__init__(recipe)
        split = split or load_data(recipe)
        self.class_names, self.num_classes = split.class_names, split.num_classes
        if self.num_classes < 2:  # every prediction would be right; most likely the classes lie one folder deeper
            where = f"{recipe.data} in {recipe.data_dir}" if recipe.data_dir else recipe.data
            raise DataError(
                f"{where} has one class alone, {self.class_names[0]!r}; a classifier needs two or more: give the "
                "folder that a folder of images for each class lies in"
            )
        split.train.transform = training_transform(recipe)
        split.test.transform = evaluation_transform(recipe)
        self.train_data, self.val_data = split.train, split.test
        mixes = recipe.mixup > 0 or recipe.cutmix > 0
        self.mix = None
        if mixes:
            self.mix = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=self.num_classes
            )
        self.criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
        if recipe.bce_loss:
            self.criterion = BinaryCrossEntropy(smoothing=0.0 if mixes else recipe.smoothing)
        elif mixes:
            self.criterion = SoftTargetCrossEntropy()

    def create_model(self) -> nn.Module:
        return build_network(self.recipe, self.num_classes)

    def augment(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(images, targets) if self.mix else (images, targets)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.criterion(output.float(), target)

    def create_metrics(self) -> MetricCollection:
        common: dict[str, Any] = {"num_classes": self.num_classes, "average": "micro", "validate_args": False}
        metrics: dict[str, Any] = {"top1": MulticlassAccuracy(**common), "val_loss": MeanMetric(nan)}  # NaN stays NaN
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(top_k=5, **common)
        return MetricCollection(metrics)

    def update(self, metrics: MetricCollection, output: Tensor, target: Tensor) -> None:
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            if name == "val_loss":
                metric.update(nn.functional.cross_entropy(output.float(), target), weight=len(target))
            else:
                metric.update(output, target)


def training_transform(recipe: Recipe) -> Any:
    """timm's augmentation for training, from a PIL image to what :func:`downmix.train.evaluation.to_device` takes."""
    size = recipe.image_size
    parts: Any = create_transform(
        input_size=(3, size, size),
        is_training=True,
        interpolation=recipe.interpolation,
        scale=(recipe.crop_scale, 1.0),
        hflip=recipe.hflip,
        color_jitter=0.0,
        auto_augment=recipe.aa or None,
        re_prob=recipe.reprob,
        re_mode="pixel",
        # Bytes, which take loaders a sixth less time, unless pixels are erased, for which timm wants them normalised.
        normalize=recipe.reprob > 0,
        separate=True,
    )
    first, *others = parts
    if recipe.crop_scale == 1 or recipe.crop_padding:
        # timm's crops all resize; these keep the image's own scale.
        resize = transforms.Resize(size, transforms.InterpolationMode(evaluation_view(recipe)["interpolation"]))
        moved = transforms.RandomCrop(size, padding=recipe.crop_padding)
        crop = moved if recipe.crop_padding else transforms.CenterCrop(size)
        first = transforms.Compose([resize, crop, transforms.RandomHorizontalFlip(recipe.hflip)])
    return transforms.Compose([first, *others])


def evaluation_transform(recipe: Recipe) -> Any:
    """The middle of the resized image, normalised."""
    return create_transform(**evaluation_view(recipe))


def evaluation_view(recipe: Recipe) -> dict[str, Any]:
    """How networks of this recipe see images once they are trained, in the words of ``timm.data.create_transform``."""
    return {
        "input_size": (3, recipe.image_size, recipe.image_size),
        "interpolation": "bilinear" if recipe.interpolation == "random" else recipe.interpolation,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": recipe.crop_pct,
        "crop_mode": "center",
    }
