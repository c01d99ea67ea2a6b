"""The tables of compare and bench."""

from __future__ import annotations

from pathlib import Path

from .._results import Row, timed_batches
from .parts import Cell, Section, Table, number
from .runs import Inputs


def comparisons(inputs: Inputs) -> Section:
    """The tables of compare."""
    section = Section(
        "compare",
        "Networks compared",
        "A row a network, trained alike; × is the ratio to the first row's, ± the standard deviation over the seeds, "
        "and a difference of accuracies that is smaller than its ± says nothing.",
    )
    for path, rows in inputs.rows("compare").items():
        section.parts.append(_comparison(path, rows))
    return section


def _comparison(path: Path, rows: list[Row]) -> Table:
    batches = list(timed_batches(rows[0]))
    columns = ["network", "top-1 %", "against the first", "seeds", "parameters", "GMACs", "activations, MB an image"]
    for batch in batches:
        columns += [f"ms at batch {batch}, median", f"ms at batch {batch}, minimum"]
    shown = []
    for row in rows:
        cells = [Cell(row["model"]), _accuracy(row), _difference(row, rows[0]), number(int(row["seeds"]), "{:.0f}")]
        for name, factor, form in (
            ("params", 1, "{:,.0f}"),
            ("macs", 1e-9, "{:.4f}"),
            ("activation_bytes", 1e-6, "{:.2f}"),
        ):
            cells.append(_ratio(name, row, rows[0], form, factor))
        for batch in batches:
            for which in ("median", "min"):
                cells.append(_ratio(f"latency_batch{batch}_{which}_ms", row, rows[0], "{:.2f}"))
        cells.append(_ratio("training_images_per_s", row, rows[0], "{:.0f}"))
        shown.append(cells)
    first = rows[0]
    name = path.parent.name if path.name == "compare.csv" else path.stem
    caption = f"{name}: {first['data']}, {first['image_size']}×{first['image_size']}, "
    caption += f"{first['device']}, {first['threads']} threads, torch {first['torch_version']}"
    mode = first.get("training_mode", "float32, NCHW")  # the only one that earlier versions timed
    return Table(caption, [*columns, f"training images/s, {mode}"], shown)


def _accuracy(row: Row) -> Cell:
    if not row["top1_mean"]:
        return Cell("–")
    return number(
        100 * float(row["top1_mean"]), note=f"± {100 * float(row['top1_std']):.2f}" if row["top1_std"] else ""
    )


def _difference(row: Row, first: Row) -> Cell:
    """In points, with the root of the sum of both variances, as compare says it."""
    if row is first or row["model"] == first["model"] or not (row["top1_mean"] and first["top1_mean"]):
        return Cell("–")
    difference = 100 * (float(row["top1_mean"]) - float(first["top1_mean"]))
    if not (row["top1_std"] and first["top1_std"]):
        return number(difference, "{:+.2f}", "one seed")
    spread = 100 * (float(row["top1_std"]) ** 2 + float(first["top1_std"]) ** 2) ** 0.5
    return number(difference, "{:+.2f}", f"± {spread:.2f}")


def _ratio(name: str, row: Row, first: Row, form: str, factor: float = 1) -> Cell:
    if not row.get(name):
        return Cell("–")
    value, base = float(row[name]), float(first[name] or 0)
    note = f"×{value / base:.2f}" if base and row["model"] != first["model"] else ""
    return number(value * factor, form, note)


def benchmarks(inputs: Inputs) -> Section:
    """The tables of bench."""
    section = Section(
        "bench",
        "Networks timed",
        "A row a network and way of running it; × says how many times as fast it is as the file's baseline, so above 1 "
        "is faster. Minima are steadier than medians on a busy machine.",
    )
    for path, rows in inputs.rows("bench").items():
        section.parts.append(_bench(path, rows))
    for path, rows in inputs.rows("bench --exported").items():
        section.parts.append(_exported(path, rows))
    return section


def _bench(path: Path, rows: list[Row]) -> Table:
    columns = ["network", "pass", "engine", "layout", "BN folded", "batch", "ms, minimum", "ms, median", "images/s"]
    shown = [
        [
            *(Cell(row["network"]), Cell(row["mode"]), Cell(row["engine"]), Cell(row["layout"]), Cell(row["fold_bn"])),
            *(number(int(row["batch_size"]), "{:.0f}"), _time(row, "min"), _time(row, "median")),
            *(_number(row, "images_per_s", "{:.1f}"), _number(row, "params", "{:,.0f}"), _gmacs(row)),
            Cell(row["error"]),
        ]
        for row in rows
    ]
    first = rows[0]
    caption = f"{path.name}: baseline {first['baseline']}, {first['image_size'].replace('x', '×')}, {first['dtype']}, "
    caption += f"{first['device']}, {first['threads']} threads, torch {first['torch_version']}"
    if not any(row["error"] for row in rows):
        return Table(caption, [*columns, "parameters", "GMACs"], [row[:-1] for row in shown])
    return Table(caption, [*columns, "parameters", "GMACs", "error"], shown)


def _exported(path: Path, rows: list[Row]) -> Table:
    shown = [
        [
            *(Cell(row["file"]), Cell(row["runtime"]), Cell(row["dtype"]), number(int(row["batch_size"]), "{:.0f}")),
            *(_time(row, "min"), _time(row, "median")),
        ]
        for row in rows
    ]
    first = rows[0]
    caption = f"{path.name}: exported files, {first['image_size']}×{first['image_size']}, {first['device']}, "
    caption += f"{first['threads']} threads; × is relative to each runtime's first file"
    return Table(caption, ["file", "runtime", "dtype", "batch", "ms, minimum", "ms, median"], shown)


def _time(row: Row, which: str) -> Cell:
    note = f"×{float(row[f'{which}_ratio']):.2f}" if row[f"{which}_ratio"] else ""
    return _number(row, f"{which}_ms", "{:.2f}", note)


def _number(row: Row, name: str, form: str, note: str = "") -> Cell:
    return number(float(row[name]), form, note) if row[name] else Cell("–")


def _gmacs(row: Row) -> Cell:
    note = f"×{float(row['macs_ratio']):.2f}" if row["macs_ratio"] else ""
    return number(float(row["macs"]) / 1e9, "{:.3f}", note)
