"""Training: recipes, data, the loop, checkpoints."""

from . import _needed as _needed
from .engine import train
from .recipe import Recipe
from .recipe_files import read_recipe, recipe_names
from .signals import Interrupted
from .state import Epoch
from .task import Task

__all__ = ["Epoch", "Interrupted", "Recipe", "Task", "read_recipe", "recipe_names", "train"]
