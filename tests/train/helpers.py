"""Data and recipes so small that a test can train on them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from downmix.train import Epoch, Recipe, train


def make_folders(root: Path, classes: tuple[str, ...] = ("ant", "bee"), count: int = 6, size: int = 12) -> Path:
    """A folder of class folders; every class has its own brightness."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 64, (size, size, 3), dtype=np.uint8) + np.uint8(
                min(128 * label, 190)
            )
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def quick_recipe(data: str | Path, **fields: Any) -> Recipe:
    quick: dict[str, Any] = {"model": "tiny_net", "epochs": 1, "batch_size": 8, "image_size": 8, "warmup_epochs": 0}
    return Recipe(**(quick | {"data": str(data), "device": "cpu"} | fields))


def run(recipe: Recipe, output: Path | None = None, **options: Any) -> list[Epoch]:
    """Trains without a progress bar."""
    return train(recipe, output, on_step=lambda done, total: None, **options)
