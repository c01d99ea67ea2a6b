"""How a comparison is shown: a table, JSON, CSV and a picture."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from ..train.checkpoint import write_whole
from ..train.output import without_nan
from ._results import write_rows

if TYPE_CHECKING:
    from .compare import Comparison

_MOST_COLUMNS = 4  # networks side by side; more become rows
_SAYS_LESS = ("in convolutions", "min")  # ends of the labels that rows of networks have no room for; the CSV has them


def table(result: Comparison) -> Table:
    """The comparison as one table: a network a column, or a row where there are many; ratios to the baseline beside."""
    baseline, rows = result.models[0], _rows(result)
    few = len(result.models) <= _MOST_COLUMNS
    against = ", ".join(result.models[1:]) if few else f"{len(result.models) - 1} others"
    shown = Table(title=f"{baseline} against {against} on {result.recipe.data}", title_justify="left")
    shown.add_column("", no_wrap=not few)
    if few:
        for name in result.models:
            shown.add_column(name, justify="right")
        for label, cells in rows:
            shown.add_row(label, *(cells.get(name, "–") for name in result.models))
    else:
        rows = [(label, cells) for label, cells in rows if not label.endswith(_SAYS_LESS)]
        for label, _ in rows:
            shown.add_column(label, justify="right")
        for name in result.models:
            shown.add_row(name, *(cells.get(name, "–") for _, cells in rows))
    env = result.environment
    shown.caption = (
        f"{env['device']}, {env['threads']} threads, torch {env['versions']['torch']}; × is the ratio to {baseline}"
    )
    return shown


def _rows(result: Comparison) -> list[tuple[str, dict[str, str]]]:
    costs, baseline = result.costs, result.models[0]

    def ratios(values: dict[str, float], form: str) -> dict[str, str]:
        base = values.get(baseline)
        return {
            name: form.format(value) + ("" if base is None or name == baseline else f"  ×{value / base:.2f}")
            for name, value in values.items()
        }

    rows = [
        ("params", ratios({n: c.params for n, c in costs.items()}, "{:,}")),
        ("  in convolutions", {n: f"{c.conv_params:,}" for n, c in costs.items()}),
        ("GMACs", ratios({n: c.macs / 1e9 for n, c in costs.items()}, "{:.4f}")),
        ("activations MB/image", ratios({n: c.activation_bytes / 1e6 for n, c in costs.items()}, "{:.2f}")),
    ]
    for batch in sorted({batch for times in result.latency_ms.values() for batch in times}):
        times = {n: t[batch] for n, t in result.latency_ms.items() if batch in t}
        for which in ("min", "median"):
            rows.append((f"ms at batch {batch}, {which}", ratios({n: t[which] for n, t in times.items()}, "{:.2f}")))
    speed = {n: result.recipe.batch_size / t["median"] * 1e3 for n, t in result.training_ms.items()}
    rows.append((f"training images/s, {result.training_mode}", ratios(speed, "{:.0f}")))
    rows.append(
        ("top-1 % on held-out", {n: _mean_and_deviation(result.top1(n)) for n in result.models if result.top1(n)})
    )
    rows.append(("against baseline", {n: result.verdict(n) for n in result.models[1:]}))
    return rows


def _mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} (n={len(values)})"


def write(result: Comparison, output: Path) -> None:
    """Writes compare.json, compare.csv and compare.png."""
    write_json(result, output)
    _write_csv(result, output)
    _draw(result, output / "compare.png")


def write_json(result: Comparison, output: Path) -> None:
    """Writes compare.json in one step, so that a kill leaves the old or the new file, never a half."""
    saved = asdict(result)
    for epoch in (epoch for run in saved["runs"] for epoch in run["epochs"]):
        epoch |= without_nan({"train_loss": epoch["train_loss"]}) | {"metrics": without_nan(epoch["metrics"])}
    text = json.dumps(saved, indent=1)
    write_whole(output / "compare.json", lambda file: file.write(text.encode()))


def _write_csv(result: Comparison, output: Path) -> None:
    rows = []
    for name in result.models:
        cost, top1 = result.costs[name], result.top1(name)
        row: dict[str, Any] = {
            "model": name,
            "data": result.recipe.data,
            "image_size": result.recipe.image_size,
            **asdict(cost),
        }
        for batch, times in result.latency_ms[name].items():
            row |= {f"latency_batch{batch}_{which}_ms": f"{value:.3f}" for which, value in times.items()}
        row["training_images_per_s"] = f"{result.recipe.batch_size / result.training_ms[name]['median'] * 1e3:.1f}"
        row["training_mode"] = result.training_mode
        row["top1_mean"] = f"{statistics.mean(top1):.4f}" if top1 else ""
        row["top1_std"] = f"{statistics.stdev(top1):.4f}" if len(top1) > 1 else ""
        row |= {"seeds": len(top1), "device": result.environment["device"], "threads": result.environment["threads"]}
        rows.append(row | {f"{package}_version": v for package, v in result.environment["versions"].items()})
    write_rows(output / "compare.csv", rows)


def _draw(result: Comparison, path: Path) -> None:
    figure = Figure(figsize=(16, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    palette: Any = matplotlib.colormaps["tab10" if len(result.models) <= 10 else "tab20"]
    colors = dict(zip(result.models, itertools.cycle(palette.colors), strict=False))
    for run in result.runs:
        for axis, values in (
            (axes[0], [e.train_loss for e in run.epochs]),
            (axes[1], [100 * e.metrics["top1"] for e in run.epochs]),
        ):
            axis.plot(range(1, len(values) + 1), values, color=colors[run.model], alpha=0.6, label=run.model)
    for name in result.models:
        if top1 := result.top1(name):
            latency = result.latency_ms[name][max(result.latency_ms[name])]
            axes[2].errorbar(
                latency["median"],
                100 * statistics.mean(top1),
                yerr=100 * statistics.stdev(top1) if len(top1) > 1 else None,
                xerr=[[latency["median"] - latency["min"]], [0]],
                fmt="o",
                capsize=4,
                color=colors[name],
                label=name,
            )
    batch = max(next(iter(result.latency_ms.values())))
    labels = (
        ("Training loss, a line a seed", "epoch", "cross entropy"),
        ("Accuracy on held-out images", "epoch", "top-1 %"),
        (
            f"Accuracy against latency, batch {batch}",
            "median latency in ms (bar: down to the minimum)",
            "top-1 % ± std",
        ),
    )
    for axis, (title, x, y) in zip(axes, labels, strict=True):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
    handles, names = axes[2].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside right upper")
    figure.suptitle(
        f"{result.recipe.data}, {result.recipe.image_size}×{result.recipe.image_size}, {result.environment['device']}"
    )
    figure.savefig(path, dpi=130)
