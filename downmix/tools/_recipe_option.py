"""The options of every command that trains: a recipe, and each of its fields."""

from __future__ import annotations

from argparse import ArgumentError
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from ..train.recipe import Recipe
from ..train.recipe_files import read_recipe


class _RecipeFile(ActionConfigFile):
    """``--recipe`` with the name of a recipe of downmix too, whose unknown fields get the nearest known one named."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        # What --print_config prints is a recipe too, with what the command asks for beside the fields.
        try:
            given = read_recipe(values, also=set(cfg.keys()) - {self.dest})
        except ValueError as error:
            raise ArgumentError(self, str(error)) from error
        # What a command decides by itself, such as compare its networks, is no option of it.
        options = {action.dest for action in parser._actions if action.option_strings}
        if "task" not in options and given.get("task", Recipe.task) != Recipe.task:
            raise ArgumentError(self, f"the recipe {values} is for {given['task']}, this command for {Recipe.task}")
        fields = {name: value for name, value in given.items() if name in options}
        self.apply_config(parser, cfg, self.dest, yaml.safe_dump(fields))


def add_recipe(parser: Any, skip: set[str] | None = None) -> None:
    """Adds ``--recipe``, ``--print_config`` and an option for each field of :class:`Recipe` but those in ``skip``."""
    parser.add_argument("--recipe", action=_RecipeFile, help="name or YAML file of a recipe: any of the fields below")
    parser.add_class_arguments(Recipe, skip=skip)


def to_recipe(args: Any) -> Recipe:
    given = args.as_dict()
    return Recipe(**{name: given[name] for name in Recipe.__dataclass_fields__ if name in given})
