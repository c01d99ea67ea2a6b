"""Packages that downmix does not need itself: where one is missing, the error says what brings it."""

from __future__ import annotations

import importlib

# Of the extra "train", without what its command line needs.
TRAINING = ("matplotlib", "rich", "safetensors", "timm", "torchmetrics")


def need(extra: str, *packages: str) -> None:
    """Raises an ImportError that names ``extra`` where one of ``packages`` can't be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"this needs more packages ({error}): pip install 'downmix[{extra}]'") from error
