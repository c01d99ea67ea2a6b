"""What happens inside the networks: what PiX layers decide, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from ...cost import CONVENTIONS, Profile
from ...explain import LayerProbabilities
from .._probability_report import COLUMNS, cells, some_classes
from .looks import Look
from .parts import COLORS, GREY, Cell, Heading, Plot, Plots, Section, Table, literal, marks, number, plot


def probabilities(looks: list[Look]) -> Section:
    """Sampling probabilities of PiX layers, as `downmix explain probabilities` shows them."""
    section = Section(
        "probabilities",
        "What PiX layers pick and mix",
        "Below the dotted threshold a channel picks its group's maximum, from it on it mixes the group's mean; where "
        "the classes' lines lie apart the choice depends on the image, and near 0 and 1 it hardly does.",
    )
    for found in looks:
        label, layers = found.training.label, found.probabilities
        section.parts += found.notes("probabilities")
        if not layers:
            continue
        stages = [_channels(name, layers[name], found.classes) for name in found.stages if name in layers]
        images = int(next(iter(layers.values())).images.sum())
        rows = [[Cell(name), *(Cell(text, float(text)) for text in cells(layer))] for name, layer in layers.items()]
        section.parts += [Heading(label), Plots(stages), Plots([_choices(layers, label)])]
        caption = f"PiX layers of {label}, {images:,} images"
        section.parts.append(Table(caption, ["PiX layer", *COLUMNS], rows, folded=len(rows) > 20))
    return section


def _channels(name: str, layer: LayerProbabilities, classes: list[str]) -> Plot:
    """The source's figure: mean p of each channel, by class and over all, in the order of the latter."""
    order = layer.mean.argsort()
    channels = list(range(len(order)))
    mean, std = layer.mean[order], layer.std[order]
    band = [*_rounded(mean + std), *_rounded((mean - std).flip(0))]
    common: dict[str, Any] = {"x": channels, "mode": "lines"}
    traces = [
        go.Scatter(
            x=[*channels, *reversed(channels)],
            y=band,
            mode="lines",
            fill="toself",
            fillcolor="rgba(128, 128, 128, 0.25)",
            line={"width": 0},
            name="± 1 std",
            hoverinfo="skip",
        )
    ]
    for place, label in enumerate(classes.index(wanted) for wanted in some_classes(classes)):
        if layer.images[label]:
            shown, line = literal(classes[label]), marks(place)["line"] | {"width": 1}
            values = _rounded(layer.class_mean[label][order])
            hover = f"{shown}: mean p %{{y}}<extra></extra>"
            traces.append(go.Scatter(y=values, name=shown, line=line, hovertemplate=hover, **common))
    hover = "all: mean p %{y}<extra></extra>"
    traces.append(
        go.Scatter(y=_rounded(mean), name="all", line={"color": GREY, "width": 3}, hovertemplate=hover, **common)
    )
    threshold = {"y0": layer.threshold, "y1": layer.threshold, "x0": 0, "x1": 1, "xref": "paper", "type": "line"}
    alt = f"Mean p of the {len(order)} channels of {name}, from {mean[0]:.2f} to {mean[-1]:.2f}; the threshold is "
    alt += f"{layer.threshold}."
    found = plot(literal(name), traces, "output channel, by its mean", "mean p", alt, 380)
    found.figure.update_layout(shapes=[threshold | {"line": {"dash": "dot", "width": 1.5, "color": GREY}}])
    found.figure.update_yaxes(range=[0, 1])
    return found


def _choices(layers: dict[str, LayerProbabilities], label: str) -> Plot:
    names = [literal(name) for name in layers]
    picks = [round(100 * layer.pick_share.mean().item(), 2) for layer in layers.values()]
    saturated = [round(100 * layer.saturation.mean().item(), 2) for layer in layers.values()]
    rates = [round(100 * layer.switch_rate.mean().item(), 2) for layer in layers.values()]
    common = {"y": names, "orientation": "h"}
    traces: list[Any] = [
        go.Bar(x=picks, name="picks (maximum)", marker={"color": COLORS[0]}, **common),
        go.Bar(
            x=[100 - share for share in picks],
            name="mixes (mean)",
            marker={"color": COLORS[4], "pattern": {"shape": "/"}},
            **common,
        ),
    ]
    for values, name, symbol in ((saturated, "saturated p", "circle"), (rates, "switch rate", "diamond")):
        inner, outer = ("#ffffff", "#000000") if symbol == "circle" else ("#000000", "#ffffff")
        marker: dict[str, Any] = {"symbol": symbol, "size": 11, "color": inner, "line": {"color": outer, "width": 2}}
        traces.append(go.Scatter(x=values, y=names, name=name, mode="markers", marker=marker))
    for trace in traces:
        trace.hovertemplate = "%{y}: " + str(trace.name) + " %{x} %<extra></extra>"
    alt = f"Share of picks in each PiX layer of {label}, from {min(picks):.0f} to {max(picks):.0f} %; the table has "
    alt += "the figures."
    found = plot("All PiX layers", traces, "% of images and channels", "", alt, 150 + 26 * len(names), barmode="stack")
    found.figure.update_yaxes(autorange="reversed", title=None)
    found.figure.update_xaxes(range=[0, 100])
    return found


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def cost(looks: list[Look]) -> Section:
    """What the networks cost in total and layer by layer."""
    section = Section(
        "cost",
        "What each layer costs",
        "One image in inference, layers in the order in which they run: multiply-adds above, bytes read and written "
        "below. Where few multiply-adds stand over many bytes, memory sets the time, and fewer operations save little.",
    )
    section.parts += [note for found in looks for note in found.notes("cost")]
    counted = [(found.training.label, found.cost) for found in looks if found.cost]
    if counted:
        section.parts.append(_totals(counted))
    for label, profile in counted:
        section.parts += [Heading(label), Plots([_bars(profile, label)]), _layers(profile, label)]
    return section


def _totals(counted: Sequence[tuple[str, Profile]]) -> Table:
    columns = ["network", "parameters", *(f"G operations, {name}" for name in CONVENTIONS), "M element operations"]
    columns += [
        "read, MB",
        "written, MB",
        "most alive, inference, MB",
        "most alive, training, MB",
        "kept for backward, MB",
    ]
    rows = []
    for label, profile in counted:
        total = profile.total
        row = [Cell(label), number(total.params, "{:,.0f}")]
        row += [number(total.operations(name) / 1e9, "{:.4f}") for name in CONVENTIONS]
        row.append(number(total.elements.total() / 1e6, "{:.3f}"))
        held = (profile.inference_bytes, profile.training_bytes, profile.activation_bytes)
        rows.append(row + [number(value / 1e6, "{:.2f}") for value in (total.read_bytes, total.written_bytes, *held)])
    return Table("Totals for one image", columns, rows)


def _bars(profile: Profile, label: str) -> Plot:
    layers = [layer for layer in profile.layers if layer.calls]
    names = [literal(layer.name) for layer in layers]
    kinds = [f"{literal(layer.name)} ({layer.kind})" for layer in layers]
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    bars = {
        "multiply-adds": ([layer.macs / 1e6 for layer in layers], "M", COLORS[0], 1),
        "read": ([layer.read_bytes / 1e6 for layer in layers], "MB", COLORS[1], 2),
        "written": ([layer.written_bytes / 1e6 for layer in layers], "MB", COLORS[4], 2),
    }
    for name, (values, unit, color, row) in bars.items():
        hover = f"%{{customdata}}<br>{name} %{{y:.4~g}} {unit}<extra></extra>"
        marker = {"color": color, "line": {"width": 0}}
        shown = [round(value, 5) for value in values]
        figure.add_bar(
            x=names, y=shown, name=name, customdata=kinds, hovertemplate=hover, marker=marker, row=row, col=1
        )
    most = max(layers, key=lambda layer: layer.macs)
    figure.update_layout(template="none", barmode="stack", bargap=0.1)
    figure.update_xaxes(showticklabels=False, showgrid=False)
    figure.update_xaxes(title="layers, in the order they run", row=2, col=1)
    figure.update_yaxes(title="M multiply-adds", row=1, col=1)
    figure.update_yaxes(title="MB", row=2, col=1)
    alt = f"Bars of {len(layers)} layers of {label}; most multiply-adds: {most.name} with {most.macs / 1e6:.3g} M of "
    alt += f"{profile.total.macs / 1e6:.4g} M. The table has the figures."
    return Plot("Layer by layer", figure, alt, 420)


def _layers(profile: Profile, label: str) -> Table:
    columns = [
        "layer",
        "kind",
        "output",
        "parameters",
        "M multiply-adds",
        "M element operations",
        "read, MB",
        "written, MB",
    ]
    rows = [
        [
            *(Cell(layer.name or "(network)"), Cell(layer.kind), Cell("×".join(map(str, layer.output or ())))),
            *(number(layer.params, "{:,.0f}"), number(layer.macs / 1e6, "{:.3f}")),
            *(number(layer.elements.total() / 1e6, "{:.3f}"), number(layer.read_bytes / 1e6, "{:.3f}")),
            *(number(layer.written_bytes / 1e6, "{:.3f}"), number(layer.intensity, "{:.1f}")),
        ]
        for layer in profile.layers
    ]
    return Table(f"Layers of {label}", [*columns, "operations a byte"], rows, folded=True)
