"""The tasks by name."""

from __future__ import annotations

from .._extras import need
from .classification import Classification
from .recipe import Recipe
from .task import Task


def create_task(recipe: Recipe) -> Task:
    """What ``recipe`` wants learned, with its data opened.

    Raises:
        ValueError: where the data can't be used.
        ImportError: where a package that the task needs is missing.
    """
    if recipe.task == "classification":
        return Classification(recipe)
    need("segment", "segmentation_models_pytorch")
    from .segmentation import Segmentation  # here: needs a package that classification doesn't

    return Segmentation(recipe)
