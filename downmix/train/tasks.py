"""The tasks by name."""

from __future__ import annotations

from .classification import Classification
from .recipe import Recipe
from .task import Task


def create_task(recipe: Recipe) -> Task:
    """What ``recipe`` wants learned, with its data opened.

    Raises:
        ValueError: where the data can't be used, or a package that the task needs is missing.
    """
    if recipe.task == "classification":
        return Classification(recipe)
    try:
        from .segmentation import Segmentation  # here: needs a package that classification doesn't
    except ImportError as error:
        raise ValueError(f"segmentation needs more packages ({error}): pip install 'downmix[segment]'") from error
    return Segmentation(recipe)
