"""What needs the trained networks: each is loaded once, counted, and run over held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from ...cost import Profile, profile
from ...explain import Attention, LayerProbabilities, attend, last_of_each_stage, measure_probabilities
from ...layers import PiX
from ...train import Recipe
from ...train.classification import Classification
from ...train.network import build_network
from ...train.sources import with_folder
from ...train.weights import read_trained, restore
from .parts import Note
from .predictions import HeldOut, Predictions, held_out, predict
from .runs import Training

_CANT = (ValueError, OSError, ImportError)
_OF_IMAGES = ("predictions", "attention")


@dataclass
class Look:
    """What was found out about one trained network.

    Attributes:
        training: whose best weights these are.
        classes: their names; empty where the data are missing.
        has_pix: whether it has PiX layers.
        stages: the last PiX layer of each.
        missing: by what could not be found out, a sentence that says why and what to do.
    """

    training: Training
    classes: list[str] = field(default_factory=list)
    has_pix: bool = False
    stages: list[str] = field(default_factory=list)
    cost: Profile | None = None
    predictions: Predictions | None = None
    probabilities: dict[str, LayerProbabilities] = field(default_factory=dict)
    attention: Attention | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def notes(self, what: str) -> list[Note]:
        """Why ``what`` is missing, if it is."""
        return [Note(self.missing[what])] if what in self.missing else []

    @contextmanager
    def sentences(self, *names: str) -> Iterator[None]:
        """Notes why each of ``names`` is missing where something inside can't be done."""
        try:
            yield
        except _CANT as error:
            self.missing |= dict.fromkeys(names, f"{self.training.label}: {' '.join(str(error).split())}")


def look(training: Training, limit: int | None, fields: dict[str, Any], progress: Progress) -> Look:
    """Finds out all that the page shows of a trained network.

    Args:
        training: its best weights are taken.
        limit: of the held-out images; None for all.
        fields: of its recipe that are replaced, such as where the data lie.
        progress: shows how far it is.
    """
    found = Look(training)
    how = {"pretrained": False, "init": None, "compile": False, "amp": "none", "workers": 0, "on_bad_image": "skip"}
    recipe = replace(training.recipe, **how, **with_folder(fields))
    is_classifier = recipe.task == "classification"
    with found.sentences("cost", *(_OF_IMAGES if is_classifier else ())):
        network, classes = _load(training, recipe)
        with found.sentences("cost"):
            found.cost = _count(network, recipe)
        if is_classifier:
            found.has_pix = any(isinstance(module, PiX) for module in network.modules())
            with found.sentences(*_OF_IMAGES, *(["probabilities"] if found.has_pix else [])):
                task = _open(recipe, classes)
                found.classes = list(task.class_names)
                _run(found, network, task, held_out(task, limit), progress)
    return found


def _load(training: Training, recipe: Recipe) -> tuple[nn.Module, int]:
    """The network and how many classes it knows, without its data, which may be gone."""
    if not training.weights.exists():
        raise ValueError(f"{training.folder} has no best.pt; copy it there, or train again")
    trained = read_trained(training.weights)
    if recipe.task == "segmentation":
        from ...train.segmentation import build_segmenter  # here: needs a package that classification doesn't

        network, classes = build_segmenter(recipe), len(recipe.segmentation.classes)
    else:
        classes = len(trained.class_names)
        if not classes:
            raise ValueError(
                f"{training.weights} does not say what its classes are called, as newer ones do; train again"
            )
        network = build_network(recipe, classes)
    restore(network, trained, training.weights)
    return network.to(recipe.torch_device()).eval(), classes


def _count(network: nn.Module, recipe: Recipe) -> Profile:
    height, width = recipe.image_size, recipe.image_size
    if recipe.task == "segmentation":
        height, width = recipe.segmentation.crop
    try:
        return profile(network, (3, height, width))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"its cost for images of {height}×{width} can't be counted: {error}") from error


def _open(recipe: Recipe, classes: int) -> Classification:
    try:
        task = Classification(recipe)
        if task.num_classes != classes:
            raise ValueError(f"{recipe.data} has {task.num_classes} classes, and the network was trained on {classes}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; say where the data lie with --data or --data_dir") from error
    return task


def _run(found: Look, network: nn.Module, task: Classification, images: HeldOut, progress: Progress) -> None:
    label = found.training.label
    bar = progress.add_task(f"{label}: predictions", total=-(-images.count // task.recipe.batch_size))
    found.predictions = predict(network, task, images, lambda: progress.advance(bar))
    if found.has_pix:
        progress.update(bar, description=f"{label}: probabilities", completed=0)

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in images.loader:
                progress.advance(bar)
                if len(batch.images):
                    yield batch.images, batch.targets

        found.stages = last_of_each_stage(network)
        with found.sentences("probabilities"):
            found.probabilities = measure_probabilities(network, pairs(), task.num_classes)
    progress.update(bar, description=f"{label}: attention")
    with found.sentences("attention"):
        examples = [sample.image for sample in found.predictions.examples]
        if not examples:
            raise ValueError(f"no image could be read; {'; '.join(found.predictions.bad[:1])}")
        found.attention = attend(network, torch.stack(examples))
    progress.remove_task(bar)
