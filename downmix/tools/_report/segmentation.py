"""Segmentations: their classes and the pictures that training drew."""

from __future__ import annotations

import json
import shlex

import plotly.graph_objects as go

from .parts import (
    Card,
    Cell,
    Gallery,
    Heading,
    Part,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    literal,
    marks,
    number,
    percent,
    picture_file,
    plot,
)
from .runs import Inputs, Training

_IOU = "iou/"
_LARGEST = 1100  # pixels of a picture's longer side, which holds three panels


def segmentation(inputs: Inputs) -> Section:
    """Intersection over union of each class, and pictures of predictions."""
    section = Section(
        "segmentation",
        "Segmentation",
        "IoU is the share of a class's true and predicted pixels that are both; a class that is nowhere has none. "
        "Pictures show the image, the truth and the prediction.",
    )
    trainings = [training for training in inputs.trainings if training.recipe.task == "segmentation"]
    if not trainings:
        return section
    examples = [training for training in inputs.examples if training in trainings]
    scores = {training.label: _scores(training) for training in examples}
    section.parts += [_totals(examples, scores), Plots([_plot(examples, scores, inputs.networks)]), _classes(scores)]
    for training in examples:
        section.parts += [Heading(f"Predictions of {training.label}"), *_pictures(training)]
    return section


def _scores(training: Training) -> dict[str, float | None]:
    """Of the test samples where there are some, else of the held-out ones at the best epoch."""
    file = training.folder / "test.json"
    return json.loads(file.read_text()) if file.is_file() else training.epochs[training.best - 1]


def _totals(examples: list[Training], scores: dict[str, dict[str, float | None]]) -> Table:
    rows = []
    for training in examples:
        found = scores[training.label]
        tested = (training.folder / "test.json").is_file()
        source = "test images, last weights" if tested else f"held-out images, epoch {training.best}"
        cells = [Cell(training.label), number(training.recipe.seed, "{:.0f}"), Cell(source)]
        rows.append(cells + [percent(found.get(name)) for name in ("miou", "pixel_accuracy")])
    return Table("Over all classes", ["network", "seed", "of", "mIoU %", "pixel accuracy %"], rows)


def _names(scores: dict[str, dict[str, float | None]]) -> list[str]:
    return list(dict.fromkeys(name for each in scores.values() for name in each if name.startswith(_IOU)))


def _plot(examples: list[Training], scores: dict[str, dict[str, float | None]], networks: list[str]) -> Plot:
    names = _names(scores)
    shown = [literal(name.removeprefix(_IOU)) for name in names]
    traces = []
    for training in examples:
        found = scores[training.label]
        values = [None if (iou := found.get(name)) is None else round(100 * iou, 2) for name in names]
        color = marks(networks.index(training.network))["marker"]["color"]
        hover = "%{x}: IoU %{y:.2f} %<extra></extra>"
        traces.append(
            go.Bar(x=shown, y=values, name=literal(training.label), marker={"color": color}, hovertemplate=hover)
        )
    alt = "Bars of the IoU of each class; the table below has the figures."
    return plot("IoU of each class", traces, "", "IoU %", alt, barmode="group")


def _classes(scores: dict[str, dict[str, float | None]]) -> Table:
    names = _names(scores)
    rows = [[Cell(name.removeprefix(_IOU)), *(percent(found.get(name)) for found in scores.values())] for name in names]
    return Table("IoU % of each class", ["class", *scores], rows)


def _pictures(training: Training) -> list[Part]:
    files = sorted((training.folder / "pictures").glob("*.png"))
    if not files:
        paths = [shlex.quote(str(training.folder / name)) for name in ("best.pt", "pictures")]
        how = f"downmix validate {paths[0]} --pictures {paths[1]}"
        return [Text(f"{training.folder} has no pictures; some are drawn by", how)]
    alt = "image, truth and prediction side by side, with a legend of the classes"
    cards = [Card(file.stem, [picture_file(file, f"{file.stem}: {alt}", _LARGEST)]) for file in files]
    return [Gallery(f"What {training.label} makes of some images", cards, size="full")]
