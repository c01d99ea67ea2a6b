"""`downmix explain tradeoff`: what accuracy costs, in operations and in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from ._console import wide_console
from ._picture import check_picture, save
from ._results import Accuracy, Results, read_results

HELP = "Accuracy against operations and against latency, over any number of outputs of compare, train and bench."


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "results", nargs="+", type=Path, help="compare.csv, CSV files of bench, folders of compare and train"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/tradeoff.png"), help="picture, *.png or *.svg")


def run(args: Any) -> None:
    tradeoff(args.results, args.output)


def tradeoff(paths: list[Path], output: Path, console: Console | None = None) -> Results:
    """Draws accuracy against operations and latency, a row a data set, and prints the figures.

    Args:
        paths: see :func:`read_results`.
        output: the picture.
        console: where the table goes.

    Raises:
        ValueError: if a file or ``output`` can't be used, or none tells an accuracy.
    """
    check_picture(output)
    console = console or wide_console()
    results = read_results(paths)
    if not results.accuracies:
        raise ValueError("none of these tells an accuracy; add the output of `downmix compare` or `downmix train`")
    console.print(table(results))
    for found in results.accuracies:
        if (found.network, found.image_size) not in results.macs:
            console.print(f"{found.network}: operations unknown; add a compare or bench output with it", soft_wrap=True)
    draw(results, output)
    console.print(f"picture: {output}", soft_wrap=True)
    return results


def table(results: Results) -> Table:
    """A row for each accuracy and each way that its network was timed."""
    shown = Table("data", "network")
    for column in ("top-1 %", "GMACs", "median ms", "min ms"):
        shown.add_column(column, justify="right")
    shown.add_column("timed on")
    for found in results.accuracies:
        macs = results.macs.get((found.network, found.image_size))
        spread = "" if found.std is None else f" ± {100 * found.std:.2f}"
        cells = [found.images, found.network, f"{100 * found.mean:.2f}{spread}"]
        cells.append("–" if macs is None else f"{macs / 1e9:.4f}")
        latencies = results.latencies_of(found)
        for latency in latencies:
            way = latency.way.replace("\n", ", ")
            shown.add_row(*cells, f"{latency.median_ms:.2f}", f"{latency.min_ms:.2f}", way)
        if not latencies:
            shown.add_row(*cells, "–", "–", "")
    return shown


def draw(results: Results, path: Path) -> None:
    """A row a data set; first accuracy against operations, then against latency, a column a way of running."""
    rows: dict[str, list[Accuracy]] = {}
    for found in results.accuracies:
        rows.setdefault(found.images, []).append(found)
    networks = list(dict.fromkeys(found.network for found in results.accuracies))
    colors = {name: f"C{i % 10}" for i, name in enumerate(networks)}
    ways = list(dict.fromkeys(way.way for found in results.accuracies for way in results.latencies_of(found)))
    shape = (len(rows), 1 + len(ways))
    figure = Figure(figsize=(3.8 * shape[1] + 0.5, 3.2 * shape[0] + 0.6), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False, sharey="row")
    for line, (data, accuracies) in zip(axes, rows.items(), strict=True):
        line[0].set(ylabel=f"top-1 % on {data}", xlabel="GMACs")
        for axis, way in zip(line[1:], ways, strict=True):
            axis.set(xlabel="median ms (bar: to the minimum)")
            axis.set_title(way, fontsize=8)
        for found in accuracies:
            if macs := results.macs.get((found.network, found.image_size)):
                _point(line[0], macs / 1e9, None, found, colors[found.network])
            for latency in results.latencies_of(found):
                axis = line[1 + ways.index(latency.way)]
                bar = [[latency.median_ms - latency.min_ms], [0]]
                _point(axis, latency.median_ms, bar, found, colors[found.network])
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(0.15)
        axis.locator_params(axis="x", nbins=5)
        axis.set_visible(axis.has_data())
    handles = [Line2D([], [], color=color, marker="o", linestyle="", label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    save(figure, path, dpi=100)


def _point(axis: Any, x: float, bar: Any, found: Accuracy, color: str) -> None:
    spread = None if found.std is None else 100 * found.std
    axis.errorbar(x, 100 * found.mean, yerr=spread, xerr=bar, fmt="o", capsize=3, color=color)
