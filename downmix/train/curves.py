"""The curves of a training as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from .checkpoint import write_whole
from .state import Epoch


def draw_curves(history: list[Epoch], path: Path) -> None:
    """Draws loss, metrics and learning rate by epoch into a PNG."""
    epochs = range(1, len(history) + 1)
    metrics = {name: [epoch.metrics[name] for epoch in history] for name in history[0].metrics if "/" not in name}
    losses = {"training": [epoch.train_loss for epoch in history]}
    if "val_loss" in metrics:
        losses["held out"] = metrics.pop("val_loss")
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, title, lines in (
        (axes[0], "loss", losses),
        (axes[1], "on held-out samples", metrics),
        (axes[2], "learning rate", {"lr": [epoch.lr for epoch in history]}),
    ):
        for name, values in lines.items():
            axis.plot(epochs, values, label=name, marker="." if len(history) < 30 else "")
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
