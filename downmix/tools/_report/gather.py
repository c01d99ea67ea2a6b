"""Everything that a page shows, in its order."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress

from .inside import cost, probabilities
from .looks import look
from .measured import benchmarks, comparisons
from .overview import configuration, curves
from .parts import Section
from .runs import Inputs
from .seen import attention, classes, predictions
from .segmentation import segmentation
from .tradeoff import tradeoff


def gather(inputs: Inputs, limit: int | None, fields: dict[str, Any], progress: Progress) -> list[Section]:
    """Runs the first training of each network, and makes all sections; those that have nothing to show are empty.

    See :func:`~.looks.look` for the arguments.
    """
    bar = progress.add_task("networks", total=len(inputs.examples))
    looks = []
    for training in inputs.examples:
        looks.append(look(training, limit, fields, progress))
        progress.advance(bar)
    return [
        configuration(inputs),
        comparisons(inputs),
        benchmarks(inputs),
        tradeoff(inputs, looks),
        curves(inputs),
        predictions(looks),
        classes(looks),
        attention(looks),
        segmentation(inputs),
        probabilities(looks),
        cost(looks),
    ]
