"""Reads what commands measured: accuracies, operations and latencies of networks. Writes their rows."""

from __future__ import annotations

import csv
import json
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Row(dict[str, str]):
    """A line of the CSV file ``path``, by column; a column that the file lacks is a ValueError."""

    def __init__(self, cells: dict[str, str], path: Path):
        super().__init__(cells)
        self.path = path

    def __missing__(self, column: str) -> str:
        raise ValueError(f"{self.path} has no column {column!r}; give the file as it was written")


# By what wrote a CSV file: columns that it alone has.
_COLUMNS = {
    "compare": {"top1_mean", "data"},
    "bench": {"mode", "engine", "network"},
    "bench --exported": {"runtime", "file", "baseline"},
}


@dataclass
class Accuracy:
    """A network's top-1 (0 to 1) on a data set: mean over the seeds, and sample deviation where there are two."""

    network: str
    data: str
    image_size: int
    mean: float
    std: float | None
    source: Path

    @property
    def images(self) -> str:
        """Which, and how large."""
        return f"{self.data}, {self.image_size}×{self.image_size}"


@dataclass
class Latency:
    """A network's milliseconds for a batch, and how it was run.

    Attributes:
        source: the comparison it belongs to; None where it goes with any accuracy of the network at that image size.
    """

    network: str
    image_size: int
    way: str
    median_ms: float
    min_ms: float
    source: Path | None


@dataclass
class Results:
    """All that was read; operations by network and image size."""

    accuracies: list[Accuracy] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    macs: dict[tuple[str, int], int] = field(default_factory=dict)

    def latencies_of(self, found: Accuracy) -> list[Latency]:
        """Those that were measured in the same comparison, or of the same network and image size by itself."""
        return [
            latency
            for latency in self.latencies
            if (latency.network, latency.image_size) == (found.network, found.image_size)
            and latency.source in (None, found.source)
        ]


def read_results(paths: list[Path]) -> Results:
    """Reads any number of outputs.

    Args:
        paths: ``compare.csv`` of `downmix compare`, CSV files of `downmix bench`, folders of `downmix compare` and
            `downmix train`. Trainings of one network on the same data count as seeds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if one is none of these.
    """
    results, trainings = Results(), defaultdict[tuple[str, str, int], list[tuple[float, Path]]](list)
    for path in paths:
        if (path / "epochs.csv").is_file():
            key, top1 = _training(path)
            trainings[key].append((top1, path))
            continue
        file = path / "compare.csv" if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            raise ValueError(f"{path} has neither epochs.csv nor compare.csv; give a folder of train or compare")
        kind, rows = read_table(file)
        if kind == "compare":
            _add_comparison(results, rows, file)
        elif kind == "bench":
            _add_bench(results, rows)
        else:
            raise ValueError(f"{file} times exported files, which don't say their network; give other files of bench")
    for (network, data, size), runs in trainings.items():
        values = [top1 for top1, _ in runs]
        std = statistics.stdev(values) if len(values) > 1 else None
        results.accuracies.append(Accuracy(network, data, size, statistics.mean(values), std, runs[0][1]))
    return results


def read_table(path: Path) -> tuple[str, list[Row]]:
    """What wrote a CSV file ("compare", "bench" or "bench --exported"), and its rows.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of theirs, or holds no row.
    """
    rows = read_rows(path)
    for kind, columns in _COLUMNS.items():
        if columns <= rows[0].keys():
            return kind, rows
    raise ValueError(f"{path} is no CSV file of `downmix compare` or `downmix bench`; give one, or a folder")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; ValueError if it is none, holds no row, or one of another length than its first line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel puts a mark in front of UTF-8
            rows = [Row(cells, path) for cells in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file ({error})") from error
    if not rows:
        raise ValueError(f"{path} holds no row")
    if any(None in row or None in row.values() for row in rows):  # DictReader's words for cells too many, too few
        raise ValueError(f"{path} has a row of another length than its first line; it may be cut off or damaged")
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a CSV file with the columns of the last row; cells that other rows lack stay empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[-1])
        writer.writeheader()
        writer.writerows(rows)


def _add_comparison(results: Results, rows: list[Row], source: Path) -> None:
    for row in rows:
        name, size = row["model"], int(row["image_size"])
        results.macs[name, size] = int(row["macs"])
        if row["top1_mean"]:
            std = float(row["top1_std"]) if row["top1_std"] else None
            accuracy = Accuracy(name, row["data"], size, float(row["top1_mean"]), std, source)
            results.accuracies.append(accuracy)
        for batch in timed_batches(row):
            median, least = (float(row[f"latency_batch{batch}_{which}_ms"]) for which in ("median", "min"))
            way = f"{row['device']}, {row['threads']} threads, batch {batch}"
            results.latencies.append(Latency(name, size, way, median, least, source))


def timed_batches(row: Row) -> Iterator[int]:
    """The batch sizes of which a row of compare has latencies."""
    for name in row:
        if name.startswith("latency_batch") and name.endswith("_median_ms"):
            yield int(name.removeprefix("latency_batch").removesuffix("_median_ms"))


def _add_bench(results: Results, rows: list[Row]) -> None:
    for row in rows:
        name, size = row["network"], int(row["image_size"].split("x")[-1])
        results.macs.setdefault((name, size), int(row["macs"]))
        if row["mode"] == "inference" and row["median_ms"]:
            folded = ", BN folded" if row["fold_bn"] == "yes" else ""
            way = f"{row['device']}, {row['threads']} threads, batch {row['batch_size']}\n"
            way += f"{row['engine']}, {row['layout']}, {row['dtype']}{folded}"
            results.latencies.append(Latency(name, size, way, float(row["median_ms"]), float(row["min_ms"]), None))


def _training(folder: Path) -> tuple[tuple[str, str, int], float]:
    """Network, data and image size of a run folder of `downmix train`, and the top-1 of its last epoch."""
    from ..train import read_recipe  # here: benchmarks.ops runs without timm, which that needs

    recipe = read_recipe(str(folder / "recipe.yaml"))
    last = read_rows(folder / "epochs.csv")[-1]
    if "top1" not in last:
        raise ValueError(f"{folder} trained something else than a classifier: epochs.csv has no top1")
    return (network_name(recipe), recipe["data"], int(recipe["image_size"])), float(last["top1"])


def network_name(recipe: dict[str, Any]) -> str:
    """The network of a recipe's fields, with what was replaced in it."""
    changes = [f"{key}={recipe[key]}" for key in ("squeeze", "pool") if recipe.get(key) not in (None, "none")]
    if config := recipe.get("convert"):
        words = "+".join(str(config[kind]) for kind in ("squeeze", "pool") if config[kind])
        number = zlib.crc32(json.dumps(config, sort_keys=True).encode())  # other layers, another network
        changes.append(f"convert={words}-{number:08x}")
    return " ".join([recipe["model"], *changes])
