"""How probabilities are shown: a table's cells, JSON, CSV and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..explain import LayerProbabilities
from ._results import write_rows

# Of :func:`cells`.
COLUMNS = (
    *("channels", "threshold", "mean p", "± between images", "picks %", "mixes %"),
    *("always pick", "always mix", "switch rate", "saturated %"),
)


def summary(layer: LayerProbabilities) -> dict[str, Any]:
    """A layer in a few numbers; shares are between 0 and 1."""
    return {
        "channels": len(layer.mean),
        "threshold": layer.threshold,
        "images": int(layer.images.sum()),
        "mean": layer.mean.mean().item(),
        "std_between_images": layer.std.mean().item(),
        "pick_share": layer.pick_share.mean().item(),
        "always_pick": int((layer.pick_share == 1).sum()),
        "always_mix": int((layer.pick_share == 0).sum()),
        "switch_rate": layer.switch_rate.mean().item(),
        "saturation": layer.saturation.mean().item(),
    }


def cells(layer: LayerProbabilities) -> list[str]:
    found = summary(layer)
    return [
        str(found["channels"]),
        f"{found['threshold']:g}",
        f"{found['mean']:.3f}",
        f"{found['std_between_images']:.3f}",
        f"{100 * found['pick_share']:.1f}",
        f"{100 * (1 - found['pick_share']):.1f}",
        str(found["always_pick"]),
        str(found["always_mix"]),
        f"{found['switch_rate']:.3f}",
        f"{100 * found['saturation']:.1f}",
    ]


def write_json(found: dict[str, LayerProbabilities], classes: list[str], about: dict[str, Any], path: Path) -> None:
    """Everything that was measured, per class and over all."""
    layers = {
        name: {
            **summary(layer),
            "channel_mean": _numbers(layer.mean),
            "channel_std": _numbers(layer.std),
            "channel_pick_share": _numbers(layer.pick_share),
            "channel_switch_rate": _numbers(layer.switch_rate),
            "channel_saturation": _numbers(layer.saturation),
            "channel_histogram": layer.histogram.tolist(),
            "class_histogram": layer.class_histogram.tolist(),
            "class_mean": _numbers(layer.class_mean),
            "class_std": _numbers(layer.class_std),
            "class_picks": layer.class_picks.tolist(),
        }
        for name, layer in found.items()
    }
    images = next(iter(found.values())).images.tolist()
    path.write_text(json.dumps({**about, "classes": classes, "images": images, "layers": layers}))


def _numbers(values: Tensor) -> Any:
    """Nested lists with six digits; None where there is no value."""

    def rounded(value: Any) -> Any:
        return [rounded(v) for v in value] if isinstance(value, list) else None if value != value else round(value, 6)

    return rounded(values.tolist())


def write_csv(found: dict[str, LayerProbabilities], path: Path) -> None:
    """A row a layer and channel."""
    measures = ("mean", "std", "pick_share", "switch_rate", "saturation")
    rows = []
    for name, layer in found.items():
        columns = {measure: getattr(layer, measure).tolist() for measure in measures}
        for channel in range(len(layer.mean)):
            values = {measure: f"{column[channel]:.6f}" for measure, column in columns.items()}
            rows.append({"layer": name, "channel": channel, "threshold": layer.threshold, **values})
    write_rows(path, rows)


def some_classes(names: list[str]) -> list[str]:
    """All of up to ten; else five, evenly spaced, as more lines hide each other."""
    return names if len(names) <= 10 else [names[i * len(names) // 5] for i in range(5)]


def draw_stages(
    layers: dict[str, LayerProbabilities], names: list[str], classes: list[str], title: str, path: Path
) -> None:
    """The source's figure: mean p of each channel, a line a class and the mean of all; below, how p is distributed."""
    figure = Figure(figsize=(max(4.0, 3.4 * len(layers)), 6), layout="constrained")
    axes = figure.subplots(2, len(layers), squeeze=False, sharey="row")
    for (name, layer), (above, below) in zip(layers.items(), axes.T, strict=True):
        order = layer.mean.argsort()
        channels = range(len(order))
        mean, std = layer.mean[order], layer.std[order]
        above.fill_between(channels, (mean - std).numpy(), (mean + std).numpy(), color="0.85", label="± 1 std")
        centers = (torch.arange(layer.bins) + 0.5) / layer.bins
        for label in (names.index(wanted) for wanted in classes):
            if layer.images[label]:
                above.plot(channels, layer.class_mean[label][order].numpy(), linewidth=0.8, label=names[label])
                below.plot(centers.numpy(), _density(layer.class_histogram[label]), linewidth=0.8)
        above.plot(channels, mean.numpy(), color="black", linewidth=1.8, label="all")
        below.plot(centers.numpy(), _density(layer.class_histogram.sum(0)), color="black", linewidth=1.8)
        above.axhline(layer.threshold, color="black", linestyle=":", linewidth=1)
        below.axvline(layer.threshold, color="black", linestyle=":", linewidth=1)
        above.set(title=name, ylim=(0, 1), xlabel="output channel, by its mean")
        above.locator_params(axis="x", integer=True)
        below.set(xlim=(0, 1), xlabel="p")
    axes[0, 0].set_ylabel("mean p   (below the dots: picks)")
    axes[1, 0].set_ylabel("density")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    images = int(next(iter(layers.values())).images.sum())
    figure.suptitle(f"{title}: sampling probabilities, {images:,} image{'s' * (images != 1)}")
    figure.savefig(path, dpi=80)


def draw_layers(found: dict[str, LayerProbabilities], title: str, path: Path) -> None:
    """Every layer a row: picks against mixes with the saturated share, and how often its channels switch."""
    figure = Figure(figsize=(10, 1.8 + 0.28 * len(found)), layout="constrained")
    bars, rates = figure.subplots(1, 2, sharey=True)
    rows = range(len(found))
    picks = [layer.pick_share.mean().item() for layer in found.values()]
    bars.barh(rows, picks, color="tab:blue", label="pick (maximum)")
    bars.barh(rows, [1 - share for share in picks], left=picks, color="tab:orange", label="mix (mean)")
    saturated = [layer.saturation.mean().item() for layer in found.values()]
    bars.plot(saturated, rows, "k|", markersize=10, markeredgewidth=2, label="saturated p")
    bars.set(xlim=(0, 1), yticks=rows, yticklabels=list(found), xlabel="share of images and channels")
    quantiles = torch.linspace(1, 0, 100, dtype=torch.float64)
    grid = torch.stack([layer.switch_rate.quantile(quantiles) for layer in found.values()])
    image = rates.imshow(
        grid.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=0.5, extent=(0, 1, len(found) - 0.5, -0.5)
    )
    rates.set(xlabel="share of the layer's channels, most switching first")
    figure.colorbar(image, ax=rates, label="switch rate")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{title}: what {sum(len(layer.mean) for layer in found.values())} channels do")
    figure.savefig(path, dpi=80)


def _density(histogram: Tensor) -> Any:
    return (histogram * len(histogram) / histogram.sum()).numpy()
