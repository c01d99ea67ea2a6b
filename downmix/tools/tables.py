"""`downmix tables`: every cost table of the papers, beside what we count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import torch
from rich.progress import track
from rich.table import Table

from ..cost import count_macs, paper
from ..models._networks import create_network
from ..train.writable import check_file
from . import _paper_figures as source
from ._console import wide_console
from ._picture import check_picture, save
from ._results import write_rows

HELP = "Print the papers' cost tables beside what we count, and the differences."
IMAGE = (3, 224, 224)


@dataclass(frozen=True)
class Figure:
    """A figure of a source beside ours.

    Attributes:
        table, item, quantity: what it is of.
        printed: as the source prints it, in units of ``unit``.
        count: ours, exact.
        unit: what a 1 in print stands for, in counts.
        note: what a reader must know of it.
    """

    table: str
    item: str
    quantity: str
    printed: str
    count: int
    unit: int = 1
    note: str = ""

    @property
    def digits(self) -> int:
        return len(self.printed.partition(".")[2])

    @property
    def ours(self) -> str:
        """In the source's unit, with three digits more where there are any to show."""
        return f"{self.count / self.unit:.{min(self.digits + 3, len(str(self.unit)) - 1)}f}"

    @property
    def difference(self) -> str:
        return f"{float(self.ours) - float(self.printed):+.{len(self.ours.partition('.')[2])}f}"

    @property
    def verdict(self) -> str:
        """How ours becomes what is printed, if it does."""
        if self.note:
            return self.note
        printed = int(self.printed.replace(".", ""))
        scaled = self.count * 10**self.digits
        if scaled == printed * self.unit:
            return "exact"
        if (2 * scaled + self.unit) // (2 * self.unit) == printed:
            return "rounded"
        return "cut off" if scaled // self.unit == printed else "differs"


def add_arguments(parser: Any) -> None:
    parser.add_argument("--output", type=Path, default=None, help="CSV file for all figures")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file for figure 3 of the PiX supplement")


def run(args: Any) -> None:
    if args.output:
        check_file(args.output)
    if args.plot:
        check_picture(args.plot, "plot")
    console = wide_console()
    names = [name for name, *_ in source.NETWORKS]
    counts = {name: _count(name) for name in track(names, "counting", console=console, transient=True)}
    figures = [*_networks(counts), *_modules(), *_worked_example()]
    for table in dict.fromkeys(figure.table for figure in figures):
        console.print(_shown(table, [figure for figure in figures if figure.table == table]))
    if args.output:
        columns = ("table", "item", "quantity", "printed", "ours", "difference", "verdict")
        write_rows(args.output, [{name: getattr(figure, name) for name in columns} for figure in figures])
        console.print(f"figures: {args.output}", soft_wrap=True)
    if args.plot:
        plot_figure_3(args.plot)
        console.print(f"figure 3: {args.plot}", soft_wrap=True)


def _count(name: str) -> tuple[int, int]:
    with torch.device("meta"):  # counts without computing
        network = create_network(name)
        return sum(p.numel() for p in network.parameters()), count_macs(network, IMAGE)


def _networks(counts: dict[str, tuple[int, int]]) -> Iterator[Figure]:
    table = "Networks at 224×224 (FACS, tables 2, 4, 5; by ptflops' convention)"
    for name, params, operations in source.NETWORKS:
        note = "not derivable from the source" if name in source.NOT_DERIVABLE else ""
        yield Figure(table, name, "M params", params, counts[name][0], 10**6, note)
        yield Figure(table, name, "GMACs", operations, counts[name][1], 10**9, note)


def _modules() -> Iterator[Figure]:
    for name, side, operations, megabytes in source.MODULES:
        table = f"A module at {source.MODULE_CHANNELS}×{side}×{side} (PiX supplement, table 1)"
        count, floats = (formula(source.MODULE_CHANNELS, side, side) for formula in paper.MODULES[name])
        yield Figure(table, name, "M operations", operations, count, 10**6)
        yield Figure(table, name, "MB", megabytes, 4 * floats, 10**6)


def _worked_example() -> Iterator[Figure]:
    shape, reduction = source.WORKED_SHAPE, source.WORKED_REDUCTION
    ours = (
        paper.squeeze_operations(*shape, reduction),
        paper.pix_operations(*shape, reduction),
        paper.pix_operations(*shape, reduction, "weighted"),
    )
    table = f"Worked example, {'×'.join(map(str, shape))}, r = {reduction} (PiX supplement, E)"
    for (item, printed, note), count in zip(source.WORKED_EXAMPLE, ours, strict=True):
        yield Figure(table, item, "operations", printed, count, note=note)


def _shown(title: str, figures: list[Figure]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(("", "", "printed", "ours", "difference", "")):
        table.add_column(column, justify="right" if 2 <= i <= 4 else "left")
    for f in figures:
        table.add_row(f.item, f.quantity, f.printed, f.ours, f.difference, f.verdict)
    return table


def plot_figure_3(path: Path) -> None:
    """Operations and memory of each module by the size of its map, at 512 channels."""
    figure = matplotlib.figure.Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    sides = range(7, 113, 7)
    for name, formulas in paper.MODULES.items():
        for axis, formula, scale in zip(axes, formulas, (1e-6, 4e-6), strict=True):
            # Pairs of modules need almost the same memory: dashes let the line below show.
            style = "--" if name in ("PiX", "FBS") else "-"
            values = [scale * formula(source.MODULE_CHANNELS, side, side) for side in sides]
            axis.plot(sides, values, style, marker=".", label=name)
    for axis, label in zip(axes, ("operations, millions", "memory, MB"), strict=True):
        axis.set(xlabel="height and width", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"One module at {source.MODULE_CHANNELS} channels, by the supplement's formulas (its figure 3)")
    save(figure, path, dpi=130)
