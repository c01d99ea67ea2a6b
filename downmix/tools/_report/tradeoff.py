"""Accuracy against operations and latency, as `downmix explain tradeoff` draws it."""

from __future__ import annotations

import plotly.graph_objects as go

from .._results import Accuracy, Latency, Results, read_results
from .looks import Look
from .parts import Cell, Heading, Note, Plot, Plots, Section, Table, literal, marks, number, plot
from .runs import Inputs

_Point = tuple[Accuracy, float, Latency | None]  # and its place along x


def tradeoff(inputs: Inputs, looks: list[Look]) -> Section:
    """A group of plots a data set: against operations, then against latency for each way of running."""
    section = Section(
        "tradeoff",
        "Accuracy against cost",
        "Up is better, left is cheaper; whiskers are the standard deviation over seeds, and the way from the median to "
        "the minimum of the times. Fewer operations are not less time, so both are here.",
    )
    results = read_results(inputs.for_results)
    for found in looks:
        if found.cost:
            size = (found.training.network, found.training.recipe.image_size)
            results.macs.setdefault(size, found.cost.total.operations("ptflops"))
    groups: dict[str, list[Accuracy]] = {}
    for found in results.accuracies:
        groups.setdefault(found.images, []).append(found)
    for data, accuracies in groups.items():
        plots = _plots(accuracies, results, inputs.networks)
        if plots:
            section.parts += [Heading(data), Plots(plots)]
        unknown = [a.network for a in accuracies if (a.network, a.image_size) not in results.macs]
        if unknown:
            names = ", ".join(dict.fromkeys(unknown))
            section.parts.append(
                Note(f"Operations of {names} are unknown; add an output of compare or bench with them.")
            )
    if results.accuracies:
        section.parts.append(_table(results))
    return section


def _plots(accuracies: list[Accuracy], results: Results, networks: list[str]) -> list[Plot]:
    points: list[_Point] = [
        (found, macs / 1e9, None)
        for found in accuracies
        if (macs := results.macs.get((found.network, found.image_size)))
    ]
    plots = [_plot("Against operations", "GMACs", points, networks)] if points else []
    timed = [(found, latency) for found in accuracies for latency in results.latencies_of(found)]
    for way in dict.fromkeys(latency.way for _, latency in timed):
        points = [(found, latency.median_ms, latency) for found, latency in timed if latency.way == way]
        title = f"Against latency: {', '.join(way.splitlines())}"
        plots.append(_plot(title, "milliseconds, median", points, networks))
    return plots


def _plot(title: str, x: str, points: list[_Point], networks: list[str]) -> Plot:
    traces = []
    for found, value, latency in points:
        name, top1 = literal(found.network), 100 * found.mean
        hover = f"{name}<br>top-1 {top1:.2f} %<br>{x.split(',')[0]} {value:.4g}"
        traces.append(
            go.Scatter(
                x=[value],
                y=[top1],
                name=name,
                mode="markers",
                error_y=None if found.std is None else {"type": "data", "array": [100 * found.std]},
                error_x=None
                if latency is None
                else {"type": "data", "symmetric": False, "array": [0], "arrayminus": [value - latency.min_ms]},
                hovertemplate=hover + (f", minimum {latency.min_ms:.4g}" if latency else "") + "<extra></extra>",
                marker=marks(networks.index(found.network))["marker"] | {"size": 11},
            )
        )
    told = "; ".join(f"{found.network}: {100 * found.mean:.2f} % at {value:.4g}" for found, value, _ in points[:12])
    height = 360 + 18 * max(0, len(points) - 4)  # a line of the legend each
    return plot(title, traces, x, "top-1 %", f"Points of top-1 against {x}. {told}.", height)


def _table(results: Results) -> Table:
    rows = []
    for found in results.accuracies:
        spread = "" if found.std is None else f"± {100 * found.std:.2f}"
        macs = results.macs.get((found.network, found.image_size))
        common = [Cell(found.network), Cell(found.images)]
        common += [number(100 * found.mean, note=spread), number(None if macs is None else macs / 1e9, "{:.4f}")]
        for latency in results.latencies_of(found):
            times = [number(latency.median_ms), number(latency.min_ms), Cell(", ".join(latency.way.splitlines()))]
            rows.append(common + times)
        if not results.latencies_of(found):
            rows.append([*common, Cell("–"), Cell("–"), Cell("")])
    columns = ["network", "data", "top-1 %", "GMACs", "ms, median", "ms, minimum", "timed on"]
    return Table("The plots' figures", columns, rows, folded=True)
