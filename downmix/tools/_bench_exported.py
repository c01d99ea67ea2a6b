"""Exported networks timed in turns, each in its own runtime."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..export import load
from ._bench_report import commit
from ._comparison_report import environment
from ._timing import interleave, summarize


def bench_exported(
    files: Sequence[Path],
    batch_sizes: Sequence[int] = (1, 8),
    *,
    image_size: int = 224,
    rounds: int = 15,
    threads: int | None = None,
    output: Path | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Times exported networks on random images; those of one runtime take turns, and are compared with its first.

    Args:
        files: of any format of :func:`downmix.export.write`, such that they take these batches and images.
        batch_sizes: images at once.
        image_size: height and width.
        rounds: how often each is timed, 2 or more.
        threads: of the runtimes; by default their own choice.
        output: CSV file.
        console: where the table goes.

    Returns:
        A row for each file and batch size, in milliseconds.

    Raises:
        ValueError: if ``rounds`` is too small, or a file can't be run so.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, got {rounds}")
    if len(set(files)) != len(files):
        raise ValueError(f"each file can stand once in a comparison, got {', '.join(map(str, files))}")
    about = environment(torch.device("cpu"))
    facts = {"device": about["device"], "threads": threads or about["threads"], "rounds": rounds, "commit": commit()}
    exported = {path: load(path, threads) for path in files}
    rows: list[dict[str, Any]] = []
    for runtime in dict.fromkeys(network.runtime for network in exported.values()):
        own = [path for path in files if exported[path].runtime == runtime]
        for batch in batch_sizes:
            fixed = {p: load(p, threads, (batch, 3, image_size, image_size)) for p in own}
            images = {p: np.random.randn(batch, 3, image_size, image_size).astype(exported[p].dtype) for p in own}
            calls: dict[str, Callable[[], object]] = {
                str(p): lambda p=p, images=images, fixed=fixed: fixed[p].run(images[p]) for p in own
            }
            try:
                times = {name: summarize(ms) for name, ms in interleave(calls, rounds).items()}
            except Exception as error:  # runtimes raise what they like
                raise ValueError(f"{runtime} can't run {batch} images of {image_size} pixels: {error}") from error
            first = times[str(own[0])]
            for path in own:
                ms = times[str(path)]
                row = {"runtime": runtime, "batch_size": batch, "file": path.name, "baseline": own[0].name}
                row |= {"dtype": exported[path].dtype, "image_size": image_size}
                row |= {f"{name}_ms": f"{value:.2f}" for name, value in ms.items()}
                row |= {f"{name}_ratio": f"{first[name] / ms[name]:.3f}" for name in ("min", "median")}
                rows.append(row | facts)
    (console or Console()).print(_table(rows))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("runtime", "batch_size", "file", "min_ms", "min_ratio", "median_ms", "median_ratio", "p20_ms", "p80_ms")
    table = Table(
        *columns, title="Exported networks; a ratio above 1 is faster than the runtime's first", title_justify="left"
    )
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    table.caption = f"{rows[0]['device']}, {rows[0]['threads']} threads, commit {rows[0]['commit']}"
    return table
