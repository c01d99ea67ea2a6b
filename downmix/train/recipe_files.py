"""Finds recipes by name or path, and checks their fields."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ._fields import nearest
from .recipe import Recipe

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
        ValueError: if there is none, it is no YAML mapping, a field is unknown (the sentence names the nearest) or bad.
    """
    path: Any = Path(name)
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        path = _folder() / f"{name.removesuffix('.yaml')}.yaml"
        if not os.path.isfile(path):
            raise ValueError(
                f"there is no recipe {name!r}; give the path of a YAML file, or {', '.join(recipe_names())}"
            )
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: no text, or no such day or number
        raise ValueError(f"the recipe {name} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"the recipe {name} must hold lines of `field: value`")
    for field in given:
        if field not in FIELDS and field not in also:
            raise ValueError(f"the recipe {name} has an unknown field {field!r}{nearest(str(field), FIELDS)}")
    try:
        Recipe(**{field: value for field, value in given.items() if field in FIELDS})
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"the recipe {name} can't be used: {error}") from error
    return given


class _Loader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which YAML keeps the last, and knows that 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: list[Any] = []
        for key, _ in node.value:
            if key.value in names:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"line {line} gives {key.value} again; leave one out")
            names.append(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, wants a point in it.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"+-0123456789"]
)


def _folder() -> Any:
    return resources.files("downmix") / "recipes"  # a link to the repository's recipes/, files once installed
