"""Where pictures are drawn."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:
    """matplotlib without a screen, imported only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
