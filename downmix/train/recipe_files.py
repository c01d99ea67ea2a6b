"""Finds recipes by name or path, and checks their fields."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .recipe import Recipe
from .segmentation_recipe import SegmentationRecipe

FIELDS = tuple(field.name for field in fields(Recipe))


def recipe_names() -> list[str]:
    """The recipes that come with downmix."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: str, also: Collection[str] = ()) -> dict[str, Any]:
    """The fields that a recipe sets.

    Args:
        name: the path of a YAML file, or the name of a recipe that comes with downmix.
        also: names that may stand in it beside the fields.

    Raises:
        ValueError: if there is none, it is no YAML mapping, or a field is unknown; the sentence names the nearest.
    """
    path: Any = Path(name)
    if not path.is_file():
        path = _folder() / f"{name.removesuffix('.yaml')}.yaml"
        if not path.is_file():
            raise ValueError(
                f"there is no recipe {name!r}; give the path of a YAML file, or {', '.join(recipe_names())}"
            )
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"the recipe {name} must hold lines of `field: value`")
    for field in given:
        if field not in FIELDS and field not in also:
            raise ValueError(f"the recipe {name} has an unknown field {field!r}{nearest(str(field), FIELDS)}")
    SegmentationRecipe.of(given.get("segmentation", {}))  # whose errors name the nearest field too
    return given


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """A clause that names what ``name`` may have meant, or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _folder() -> Any:
    return resources.files("downmix") / "recipes"  # a link to the repository's recipes/, files once installed
