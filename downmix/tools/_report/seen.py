"""How classifiers did on held-out images: mistakes, classes, and where they looked."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import plotly.graph_objects as go
import torch

from ...train._segmentation_transforms import to_picture
from .looks import Look
from .parts import (
    Card,
    Cell,
    Gallery,
    Heading,
    Part,
    Picture,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    literal,
    number,
    picture,
    plot,
)
from .predictions import Predictions, Sample

_MOST_SQUARES = 40  # classes; a larger matrix can't be read
_PAIRS = 20


def predictions(looks: list[Look]) -> Section:
    """The most confident mistakes."""
    section = Section(
        "mistakes",
        "Predictions and the worst mistakes",
        "Each network's best weights on the held-out images, and the mistakes it was surest of: scores are the softmax "
        "of its outputs, and confident mistakes are often wrong labels, or show what the network has not learnt.",
    )
    for found in looks:
        section.parts += found.notes("predictions")
        if seen := found.predictions:
            section.parts += [Heading(found.training.label), Text(_told(found, seen))]
            cards = [Card(sample.name, [_mistake(sample, found.classes)]) for sample in seen.worst]
            caption = f"Mistakes of {found.training.label}, the most confident first"
            section.parts += [Gallery(caption, cards)] if cards else [Text("It made no mistake on these images.")]
    return section


def _told(found: Look, seen: Predictions) -> str:
    right = int(seen.confusion.diagonal().sum())
    of = "" if seen.total in (None, seen.count) else f", evenly spaced among {seen.total:,},"
    text = f"{right:,} of {seen.count:,} held-out images{of} are right: top-1 {100 * right / max(1, seen.count):.2f} %"
    text += f", top-5 {100 * seen.metrics['top5']:.2f} %" if "top5" in seen.metrics else ""
    training = found.training
    text += f". Weights after epoch {training.best} of {len(training.epochs)}, seed {training.recipe.seed}."
    return text + (f" {len(seen.bad)} images could not be read, such as: {seen.bad[0]}" if seen.bad else "")


def _mistake(sample: Sample, classes: list[str]) -> Picture:
    true, said = classes[sample.truth], classes[sample.predicted]
    text = f"taken for {said} ({sample.score:.3f}), is {true} ({sample.truth_score:.3f})"
    return picture(_pixels(sample), f"{sample.name}, a {true}", text)


def _pixels(sample: Sample) -> np.ndarray:
    return to_picture(sample.image).permute(1, 2, 0).numpy()


def classes(looks: list[Look]) -> Section:
    """Confusion matrices and accuracies of classes."""
    section = Section(
        "classes",
        "Classes and what they are taken for",
        "A row of a matrix is a true class, a column what its images were taken for, the colour their share of the "
        "row; right answers lie on the diagonal.",
    )
    for found in looks:
        section.parts += found.notes("predictions")
        if seen := found.predictions:
            section.parts.append(Heading(found.training.label))
            section.parts += _confusion(seen, found.classes, found.training.label)
    return section


def _confusion(seen: Predictions, names: list[str], label: str) -> Iterator[Part]:
    counts = seen.confusion
    totals = counts.sum(1)
    right = counts.diagonal()
    wrong = counts - torch.diag(right)
    if len(names) <= _MOST_SQUARES:
        yield Plots([_matrix(seen, names, label)])
    rows = []
    for i, name in enumerate(names):
        most, taken = int(wrong[i].max()), int(wrong[i].argmax())
        share = None if not totals[i] else 100 * int(right[i]) / int(totals[i])
        confused = Cell(names[taken], None, f"{most} of {totals[i]}") if most else Cell("–")
        rows.append(
            [Cell(name), number(int(totals[i]), "{:,.0f}"), number(int(right[i]), "{:,.0f}"), number(share), confused]
        )
    columns = ["class", "images", "right", "accuracy %", "most often taken for"]
    yield Table(f"Accuracy of each class, {label}", columns, rows, folded=len(names) > 20)
    order = wrong.flatten().argsort(descending=True)[:_PAIRS].tolist()
    pairs = [(i // len(names), i % len(names), int(wrong.flatten()[i])) for i in order if wrong.flatten()[i]]
    if pairs:
        cells = [[Cell(names[true]), Cell(names[said]), number(count, "{:,.0f}")] for true, said, count in pairs]
        yield Table(f"Most confused, {label}", ["true", "taken for", "images"], cells, folded=True)


def _matrix(seen: Predictions, names: list[str], label: str) -> Plot:
    counts = seen.confusion
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy().round(3)
    few = len(names) <= 12
    shown = [literal(name) for name in names]
    trace = go.Heatmap(
        z=shares.tolist(),
        x=list(range(len(names))),
        y=list(range(len(names))),
        text=counts.tolist(),
        customdata=[[f"{shown[i]} taken for {shown[j]}" for j in range(len(names))] for i in range(len(names))],
        texttemplate="%{text}" if few else None,
        hovertemplate="%{customdata}: %{text} images, %{z:.1%} of the row<extra></extra>",
        colorscale="Cividis",
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "share"}, "thickness": 12},
    )
    ticks = {"tickvals": list(range(len(names))), "ticktext": shown, "constrain": "domain"}
    alt = f"Confusion matrix of {label}; the tables below hold its figures."
    found = plot("Confusion matrix", [trace], "taken for", "true class", alt, min(900, 260 + 26 * len(names)))
    found.figure.update_layout(xaxis=ticks, yaxis=ticks | {"autorange": "reversed", "scaleanchor": "x"})
    return found


def attention(looks: list[Look]) -> Section:
    """Maps of a few images, the networks beside each other."""
    section = Section(
        "attention",
        "Where the networks look",
        "GradCAM of the predicted class over what the network saw: bright is where the last map speaks for that class, "
        "dark where it doesn't; each map is scaled to its own largest value.",
    )
    cards: dict[tuple[str, str], Card] = {}
    for found in looks:
        section.parts += found.notes("attention")
        if found.predictions and found.attention:
            for sample, heat in zip(found.predictions.examples, found.attention.maps, strict=True):
                title = f"{sample.name}: {found.classes[sample.truth]}"
                key = (found.training.recipe.data, title)
                if key not in cards:
                    cards[key] = Card(title, [picture(_pixels(sample), f"{title}, as the network sees it", "image")])
                cards[key].pictures.append(_map(sample, heat.numpy(), found))
    if cards:
        layers = dict.fromkeys(f"{found.training.label}: {found.attention.layer}" for found in looks if found.attention)
        section.parts.append(
            Gallery(
                f"Maps of a few held-out images, by their true classes. Layers: {'; '.join(layers)}",
                [*cards.values()],
                size="wide",
            )
        )
    return section


def _map(sample: Sample, heat: np.ndarray, found: Look) -> Picture:
    colors = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    pixels = (0.4 * _pixels(sample) + 0.6 * colors).round().clip(0, 255).astype(np.uint8)
    said = f"{found.classes[sample.predicted]} ({sample.score:.2f})"
    verdict = "right" if sample.predicted == sample.truth else "wrong"
    caption = f"{found.training.label}: {said}, {verdict}"
    height, width = np.unravel_index(heat.argmax(), heat.shape)
    place = f"{100 * width // heat.shape[1]} % from the left and {100 * height // heat.shape[0]} % from the top"
    return picture(pixels, f"Map of {found.training.label} over {sample.name}, brightest {place}", caption)
