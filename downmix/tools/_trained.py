"""Trained networks, and images as they want to see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm.data
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..models._networks import create_network
from ..train import Recipe
from ..train.classification import evaluation_view
from ..train.network import build_network
from ..train.sources import Split
from ..train.weights import read_trained, restore
from ._picture import read_rgb

PRETRAINED = "pretrained"


def trained_network(name: str | None, checkpoint: str | Path | None, device: str = "cpu", **kwargs: Any) -> nn.Module:
    """A network with trained weights, in evaluation mode.

    Where `downmix train` wrote the weights, ``pretrained_cfg`` says how the network saw its images in training, and
    under timm's word ``label_names`` what its classes are called.

    Args:
        name: as :func:`create_network` takes it; None for the one that `downmix train` trained.
        checkpoint: a checkpoint or weights that `downmix train` wrote, its folder (for the best), a published file or
            safetensors; "pretrained" or None for the weights that timm has.
        device: cpu, cuda, cuda:N or auto.
        **kwargs: arguments of the network; ``num_classes`` is by default what the weights say.

    Raises:
        ValueError: if there are no such weights or they don't fit.
    """
    if checkpoint not in (None, PRETRAINED):
        network = _load(name, Path(checkpoint), **kwargs)
    elif name is None:
        raise ValueError("name a network, or give a checkpoint of `downmix train`, which says what it is of")
    else:
        config = get_pretrained_cfg(name.partition(":")[0])
        if config is not None and not config.has_weights:
            raise ValueError(f"there are no published weights of {name}; give a file of trained weights as checkpoint")
        network = create_network(name, pretrained=True, **kwargs)
    return network.to(Recipe(device=device).torch_device()).eval()


def _load(name: str | None, path: Path, **kwargs: Any) -> nn.Module:
    path = path / "best.pt" if path.is_dir() else path
    trained = read_trained(path)
    recipe, names = trained.recipe, trained.class_names
    kwargs = ({"num_classes": len(names)} if names else {}) | kwargs
    if name is not None:
        network = create_network(name, **kwargs)
    elif recipe is not None and recipe.task == "classification" and kwargs.get("num_classes"):
        network = build_network(replace(recipe, pretrained=False, init=None), **kwargs)
    else:
        raise ValueError(f"{path} does not say which classifier it is of; name the network")
    restore(network, trained, path)
    if recipe is not None:
        config: Any = getattr(network, "pretrained_cfg", None) or {}
        about = {"architecture": name or recipe.model, "label_names": names}
        network.pretrained_cfg = config | evaluation_view(recipe) | about
    return network


def side_by_side(
    models: list[str], checkpoints: Sequence[str] | None, classes: Path | None, device: str = "cpu"
) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Loads networks with trained weights one after another.

    Args:
        models: names as :func:`trained_network` takes them.
        checkpoints: weights, one for each; None for those that timm has.
        classes: as :func:`read_class_names` takes them; by default those that the first network names.
        device: as :func:`trained_network` takes it.

    Yields:
        The network's title, which is its name, with its checkpoint on a second line where it comes twice; the network;
        the names of the classes, which are the same for all.

    Raises:
        ValueError: if weights are missing or don't fit, or the networks have other numbers of classes.
    """
    names = read_class_names(classes) if classes else []
    options = {"num_classes": len(names)} if names else {}
    for title, (name, checkpoint) in _columns(models, checkpoints or [None] * len(models)).items():
        network: Any = trained_network(name, checkpoint, device, **options)
        names = names or own_names(network) or default_names(network.num_classes)
        if network.num_classes != len(names):
            raise ValueError(f"{name} has {network.num_classes} classes, but there are {len(names)} names of classes")
        yield title, network, names


def _columns(models: list[str], checkpoints: Sequence[str | None]) -> dict[str, tuple[str, str | None]]:
    """Network and checkpoint by their title."""
    if len(checkpoints) != len(models):
        raise ValueError(f"give one checkpoint for each network, got {len(checkpoints)} for {len(models)}")
    pairs = list(zip(models, checkpoints, strict=True))
    columns = {name if models.count(name) == 1 else f"{name}\n{file}": (name, file) for name, file in pairs}
    if len(columns) != len(pairs):
        raise ValueError(f"a network can stand once with the same checkpoint, got {', '.join(models)}")
    return columns


def view(network: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """How the network wants its images: size, share that is cropped, interpolation, mean and standard deviation."""
    size = None if image_size is None else (3, image_size, image_size)
    return timm.data.resolve_model_data_config(network, {"input_size": size})


def read_images(network: nn.Module, files: Sequence[Path], image_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Image files as the network wants them, [B, 3, H, W], and how they look then, [B, H, W, 3] in [0, 1]."""
    how = view(network, image_size)
    transform: Any = timm.data.create_transform(**how)
    batch = torch.stack([transform(read_rgb(file)) for file in files])
    mean, std = (torch.tensor(how[key])[:, None, None] for key in ("mean", "std"))
    return batch, (batch * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def held_out(split: Split, how: dict[str, Any], batch_size: int, limit: int | None = None) -> DataLoader[Any]:
    """A loader of the held-out images, or of ``limit`` of them, evenly spaced, so that all classes come."""
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got {batch_size} and {limit}")
    images = split.test
    images.transform = timm.data.create_transform(**how)
    count = min(limit or len(images), len(images))
    return DataLoader(Subset(images, [i * len(images) // count for i in range(count)]), batch_size)


def own_names(network: nn.Module) -> list[str]:
    """What the network says its classes are called, if anything."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    return list(config.get("label_names") or ())


def read_class_names(path: Path) -> list[str]:
    """The lines of a file, or the folders in a folder, or in its ``train``; ValueError if there are none."""
    if path.is_dir():
        root = path / "train" if (path / "train").is_dir() else path
        names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    else:
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({error}); give a file with a class a line") from error
    if not names:
        raise ValueError(f"{path} names no class; give a file with a class a line, or a folder of class folders")
    return names


def default_names(count: int) -> list[str]:
    """ImageNet's names for 1000 classes, else numbers."""
    if count != 1000:
        return [str(label) for label in range(count)]
    info = timm.data.ImageNetInfo()
    return [info.index_to_description(label).split(",")[0] for label in range(1000)]
