"""Trains one network by a recipe: timm's loader, optimiser and schedule around a plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.data
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch import nn
from torch.utils.data import DataLoader

from ._data import DataError, Split


@dataclass
class Recipe:
    """How networks are trained. The defaults suit the digits.

    Args:
        data: digits, fashion_mnist, cifar10, cifar100, a folder of class folders, or a name that timm knows.
        data_dir: where the data lie or are downloaded to (default: data).
        image_size: height and width in pixels that images are brought to.
        epochs: passes over the training images.
        batch_size: images a step.
        opt: optimiser, by timm's name (sgd is Nesterov's).
        lr: highest learning rate, reached after the warm-up.
        weight_decay: weight decay; none on biases and norms.
        sched: schedule of the learning rate, by timm's name.
        warmup_epochs: epochs of linear warm-up.
        smoothing: label smoothing.
        crop_scale: smallest share of the image's area that a random crop keeps; 1 for no random crop.
        hflip: probability of a horizontal flip.
        workers: processes that load images; 0 loads in the main process.
        device: cpu, cuda, or auto for cuda where there is one.
    """

    data: str = "digits"
    data_dir: str | None = None
    image_size: int = 16
    epochs: int = 12
    batch_size: int = 64
    opt: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    sched: str = "cosine"
    warmup_epochs: int = 1
    smoothing: float = 0.1
    crop_scale: float = 0.7
    hflip: float = 0.0
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("image_size", 8), ("epochs", 1), ("batch_size", 2), ("workers", 0), ("warmup_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("crop_scale", "hflip", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")

    def torch_device(self) -> torch.device:
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device; use cpu or auto")
        return device


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: the mean training loss, held-out loss and accuracy (0 to 1), and the seconds of training."""

    train_loss: float
    test_loss: float
    top1: float
    seconds: float


def create_loaders(split: Split, recipe: Recipe) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """timm's loaders for training (augmented, shuffled) and for evaluation (every image once)."""
    count = len(split.train)  # type: ignore[arg-type]
    if count < recipe.batch_size:
        raise DataError(f"{count} training images don't fill one batch of {recipe.batch_size}; lower batch_size")
    common = {
        "input_size": (3, recipe.image_size, recipe.image_size),
        "batch_size": recipe.batch_size,
        "use_prefetcher": False,
        "interpolation": "bilinear",
        "num_workers": recipe.workers,
        "persistent_workers": recipe.workers > 0,
        "pin_memory": recipe.torch_device().type == "cuda",
    }
    augmentation = {
        "no_aug": recipe.crop_scale == 1 and recipe.hflip == 0,
        "scale": (recipe.crop_scale, 1.0),
        "hflip": recipe.hflip,
        "color_jitter": None,
    }
    create: Any = timm.data.create_loader  # annotated for timm's own data sets, takes any
    train = create(split.train, is_training=True, **augmentation, **common)
    return train, create(split.test, is_training=False, crop_pct=1.0, **common)


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Epoch]:
    """Trains ``model`` in place and evaluates it on the held-out images after every epoch.

    Args:
        model: a classifier with ``split.num_classes`` outputs.
        split: training and held-out images.
        recipe: all else.
        seed: of shuffling and augmentation.
        on_step: called after every training step with the steps done and the steps in all.

    Returns:
        One :class:`Epoch` for each epoch.

    Raises:
        FloatingPointError: where the loss is no longer finite, with the step it happened at.
    """
    timm.utils.random_seed(seed)
    device = recipe.torch_device()
    model.to(device)
    train_loader, test_loader = create_loaders(split, recipe)
    steps = len(train_loader)
    optimizer = timm.optim.create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    assert scheduler is not None
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    history, done = [], 0
    scheduler.step_update(0)
    for epoch in range(recipe.epochs):
        model.train()
        start, losses = time.perf_counter(), []
        for images, labels in train_loader:
            loss = train_step(model, images.to(device), labels.to(device), criterion, optimizer)
            losses.append(loss)
            done += 1
            scheduler.step_update(done)
            on_step(done, recipe.epochs * steps)
        seconds = time.perf_counter() - start
        train_loss = torch.stack(losses).mean().item()
        if not train_loss == train_loss or train_loss == float("inf"):
            raise FloatingPointError(f"the loss became {train_loss} in epoch {epoch + 1}; lower lr (now {recipe.lr})")
        test_loss, top1 = evaluate(model, test_loader, device)
        history.append(Epoch(train_loss, test_loss, top1, seconds))
    return history


def train_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, criterion: nn.Module, optimizer: torch.optim.Optimizer
) -> torch.Tensor:
    """One forward pass, backward pass and update; returns the loss, detached."""
    loss = criterion(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> tuple[float, float]:
    """Mean cross entropy and accuracy (0 to 1) over all images of ``loader``."""
    model.eval()
    loss = correct = count = 0.0
    for images, labels in loader:
        logits, labels = model(images.to(device)), labels.to(device)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss / count, correct / count
