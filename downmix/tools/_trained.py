"""Trained networks, and images as they want to see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm.data
from timm.models import get_pretrained_cfg
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..models._networks import create_network
from ..published import load_published
from ..train import Recipe
from ..train.sources import TORCHVISION_SETS, Split

PRETRAINED = "pretrained"


def trained_network(name: str, checkpoint: str | None, device: str = "cpu", **kwargs: Any) -> nn.Module:
    """A network with trained weights, in evaluation mode.

    Args:
        name: as :func:`create_network` takes it.
        checkpoint: a checkpoint or weights that `downmix train` wrote, its folder (for the best), a published file or
            safetensors; "pretrained" or None for the weights that timm has.
        device: cpu, cuda, cuda:N or auto.
        **kwargs: arguments of the network.

    Raises:
        ValueError: if there are no such weights or they don't fit.
    """
    if checkpoint not in (None, PRETRAINED):
        network = create_network(name, **kwargs)
        path = Path(checkpoint)
        load_published(network, path / "best.pt" if path.is_dir() else path)
    else:
        config = get_pretrained_cfg(name.partition(":")[0])
        if config is not None and not config.has_weights:
            raise ValueError(f"there are no published weights of {name}; give a file of trained weights as checkpoint")
        network = create_network(name, pretrained=True, **kwargs)
    return network.to(Recipe(device=device).torch_device()).eval()


def view(network: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """How the network wants its images: size, share that is cropped, interpolation, mean and standard deviation."""
    size = None if image_size is None else (3, image_size, image_size)
    return timm.data.resolve_model_data_config(network, {"input_size": size})


def held_out(split: Split, how: dict[str, Any], batch_size: int, limit: int | None = None) -> DataLoader[Any]:
    """A loader of the held-out images, or of ``limit`` of them, evenly spaced, so that all classes come."""
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got {batch_size} and {limit}")
    images: Any = split.test
    images.transform = timm.data.create_transform(**how)
    count = min(limit or len(images), len(images))
    return DataLoader(Subset(images, [i * len(images) // count for i in range(count)]), batch_size)


def class_names(data: str, data_dir: str | None, count: int) -> list[str]:
    """Names of a data set's classes, as far as folders give them; see :func:`read_class_names`."""
    root = Path(data_dir or "data") if data in TORCHVISION_SETS else Path(data)
    found = read_class_names(root) if root.is_dir() else []
    return found if len(found) == count else default_names(count)


def read_class_names(path: Path) -> list[str]:
    """The lines of a file, or the folders in a folder, or in its ``train``."""
    if path.is_dir():
        root = path / "train" if (path / "train").is_dir() else path
        return sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def default_names(count: int) -> list[str]:
    """ImageNet's names for 1000 classes, else numbers."""
    if count != 1000:
        return [str(label) for label in range(count)]
    info = timm.data.ImageNetInfo()
    return [info.index_to_description(label).split(",")[0] for label in range(1000)]
