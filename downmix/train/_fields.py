"""The names and types of a recipe's fields, which Python does not check."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def nearest(name: str, known: Sequence[str]) -> str:
    """A clause that names what ``name`` may have meant, or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def check_types(recipe: Any, prefix: str = "") -> None:
    """Raises TypeError where a field of the dataclass ``recipe`` is of another type than it says.

    Args:
        prefix: stands before the names of the fields.
    """
    for name, kind in get_type_hints(type(recipe)).items():
        value = getattr(recipe, name)
        if not _fits(value, kind):
            raise TypeError(f"{prefix}{name} must be {_words(kind)}, got {value!r}")


def make_plain(recipe: Any) -> None:
    """Turns NumPy's values in the dataclass ``recipe`` into Python's own: YAML, JSON and checkpoints hold no others."""
    for name, value in vars(recipe).items():
        setattr(recipe, name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(_fits(each, *get_args(kind)) for each in value)
    if get_origin(kind) is Literal:
        return True  # what is none of the choices is refused together with them
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return any(_fits(value, each) for each in get_args(kind)) if get_args(kind) else isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return f"a list, each of which is {_WORDS[item]}"
    if get_args(kind):
        return " or ".join(_words(each) for each in get_args(kind))
    return _WORDS.get(kind, "lines of `field: value`")
