"""How the times of whole networks are shown: a table, CSV and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ._environment import commit
from ._results import write_rows

if TYPE_CHECKING:
    from .bench import Bench, Configuration, Row


def show(result: Bench, console: Console) -> None:
    """Prints a section for each configuration, then what was folded."""
    table = Table(title=f"×: times as cheap or as fast as {result.baseline}", title_justify="left")
    table.add_column("configuration", no_wrap=True)
    table.add_column("network", overflow="fold")
    for column in ("params M", "GMACs", "× GMACs", "min ms", "× min", "median ms", "× median", "images/s"):
        table.add_column(column, justify="right")
    before: Configuration | None = None
    for row in result.rows:
        if row.configuration != before:
            table.add_section()
        cost = result.costs[row.network]
        cells = [str(row.configuration) if row.configuration != before else "", row.network]
        cells += [f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e9:.3f}", f"{result.macs_ratio(row.network):.2f}"]
        table.add_row(*cells, *_times(result, row))
        before = row.configuration
    console.print(table)
    for row in result.rows:
        if row.error:
            console.print(f"{row.network}, {row.configuration}: {row.error}", soft_wrap=True, markup=False)
    for name, (count, total) in result.folded_norms.items():
        console.print(f"{name}: {count} of {total} BatchNorms folded", soft_wrap=True)
    about = result.about
    size = "×".join(map(str, about["input_size"]))
    console.print(
        f"{about['device']}, {about['threads']} threads, {about['dtype']}, {size}, {about['rounds']} rounds, "
        f"torch {about['versions']['torch']}",
        soft_wrap=True,
    )


def _times(result: Bench, row: Row) -> list[str]:
    if not row.ms:
        return ["failed"]
    cells = []
    for which in ("min", "median"):
        speedup = result.speedup(row, which)
        cells += [f"{row.ms[which]:.2f}", "" if speedup is None else f"{speedup:.2f}"]
    return [*cells, f"{_images_per_s(row):.1f}"]


def _images_per_s(row: Row) -> float:
    return row.configuration.batch_size / row.ms["median"] * 1e3


def write(result: Bench, path: Path) -> None:
    """Writes the CSV file, and the picture beside it."""
    about = result.about
    where = {name: about[name] for name in ("dtype", "rounds", "device", "threads")}
    where |= {"image_size": "x".join(map(str, about["input_size"])), "commit": commit()}
    where |= {f"{package}_version": version for package, version in about["versions"].items()}
    write_rows(path, [_csv_row(result, row) | where for row in result.rows])
    _draw(result, path.with_suffix(".png"))


def _csv_row(result: Bench, row: Row) -> dict[str, Any]:
    cost, configuration = result.costs[row.network], row.configuration
    count, total = result.folded_norms.get(row.network, ("", "")) if configuration.fold_bn else ("", "")
    cells: dict[str, Any] = {
        "mode": configuration.mode,
        "engine": configuration.engine,
        "layout": configuration.layout,
        "fold_bn": "yes" if configuration.fold_bn else "no",
        "batch_size": configuration.batch_size,
        "network": row.network,
        "baseline": result.baseline,
        "params": cost.params,
        "macs": cost.macs,
        "macs_ratio": f"{result.macs_ratio(row.network):.4f}",
    }
    for which in ("min", "median", "p20", "p80"):
        cells[f"{which}_ms"] = f"{row.ms[which]:.4f}" if row.ms else ""
    for which in ("min", "median"):
        speedup = result.speedup(row, which)
        cells[f"{which}_ratio"] = "" if speedup is None else f"{speedup:.4f}"
    cells["images_per_s"] = f"{_images_per_s(row):.2f}" if row.ms else ""
    return cells | {"folded_norms": count, "norms": total, "error": row.error}


def _draw(result: Bench, path: Path) -> None:
    """Bars of the speed-up, a group a configuration; a black mark shows what the operations alone would give."""
    names = list(result.costs)
    groups = list(dict.fromkeys(row.configuration for row in result.rows))
    height = 0.8 / len(names)
    figure = Figure(figsize=(10, 1.5 + 0.25 * len(groups) * (len(names) + 1)), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(names):
        speedups = [(result.speedup(row, "min"), row) for row in result.rows if row.network == name]
        bars = [(groups.index(row.configuration) + i * height, value) for value, row in speedups if value is not None]
        if not bars:
            continue
        places, values = zip(*bars, strict=True)
        drawn = axis.barh(places, values, height, label=name)
        axis.bar_label(drawn, fmt="%.2f", fontsize=7, padding=2)
        for place in places:
            axis.vlines(result.macs_ratio(name), place - height / 2, place + height / 2, color="black", linewidth=1.5)
    axis.set(
        yticks=[i + (len(names) - 1) * height / 2 for i in range(len(groups))],
        yticklabels=[str(group) for group in groups],
        xlabel=f"times as fast as {result.baseline}, by the minimum; black: by GMACs",
        title=f"{result.about['device']}, {result.about['threads']} threads, {result.about['dtype']}",
    )
    axis.invert_yaxis()
    axis.margins(x=0.08)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
