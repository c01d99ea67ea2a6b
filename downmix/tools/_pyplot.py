"""Where pictures are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib without a screen, imported only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path, **options: Any) -> None:
    """Writes a picture under the very name given, as PNG where that has no ending; matplotlib would add one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=path.suffix[1:] or "png", **options)
