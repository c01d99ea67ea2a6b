"""`downmix train`: trains one network by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ..train import train
from ._recipe_option import add_recipe, to_recipe

HELP = "Train a network by a recipe; every field can be given. Alone, or under torchrun on many machines."


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("runs/train"), help="folder of checkpoints, logs and curves"
    )
    parser.add_argument(
        "--resume",
        type=str,
        default="",
        help="auto goes on from the newest whole checkpoint in the output folder, a path from that one",
    )
    add_recipe(parser)


def run(args: Any) -> None:
    train(to_recipe(args), args.output, resume=args.resume, console=Console())
