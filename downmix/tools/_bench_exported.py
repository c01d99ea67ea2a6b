"""Exported networks timed in turns, each in its own runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..cost import measure_device
from ..export import load
from ..train.writable import check_file
from ._console import wide_console
from ._environment import commit, environment
from ._results import write_rows
from ._timing import interleave, summarize


def bench_exported(
    files: Sequence[Path],
    batch_sizes: Sequence[int],
    *,
    image_size: int | None,
    rounds: int = 15,
    threads: int | None = None,
    output: Path | None = None,
) -> None:
    """Times exported networks on random images; those of one runtime take turns, and are compared with its first.

    Each is warmed up before the first is timed. Prints every quantile, then the medians as the papers print theirs.

    Args:
        files: of any format of :func:`downmix.export.write`, such that they take these batches and images.
        batch_sizes: images at once.
        image_size: height and width; by default what the first file says, or 224.
        rounds: how often each is timed, 2 or more.
        threads: of the runtimes; by default as many as torch has.
        output: CSV file, with a row for each file and batch size.

    Raises:
        ValueError: if a number is too small, a file can't be run so, or ``output`` can't be written.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, got {rounds}")
    if min(batch_sizes) < 1 or (image_size is not None and image_size < 1):
        raise ValueError(f"batch_sizes and image_size must be at least 1, got {list(batch_sizes)} and {image_size}")
    if len(set(files)) != len(files):
        raise ValueError(f"each file can stand once in a comparison, got {', '.join(map(str, files))}")
    if output is not None:
        check_file(output)
    threads = threads or torch.get_num_threads()
    power = measure_device(seconds=0.2).flops_per_s
    facts = {"device": environment(torch.device("cpu"))["device"], "threads": threads, "gflops": f"{power / 1e9:.1f}"}
    facts |= {"rounds": rounds, "commit": commit()}
    exported = {path: load(path, threads) for path in files}
    size: int = image_size or json.loads(exported[files[0]].metadata.get("input_size", "[224]"))[-1]
    clash = len({path.name for path in files}) < len(files)
    names = {path: str(path) if clash else path.name for path in files}
    rows: list[dict[str, Any]] = []
    for runtime in dict.fromkeys(network.runtime for network in exported.values()):
        own = [path for path in files if exported[path].runtime == runtime]
        for batch in batch_sizes:
            shape = (batch, 3, size, size)
            try:
                fixed = {p: load(p, threads, shape) for p in own}
                images = {p: np.random.randn(*shape).astype(exported[p].dtype) for p in own}
                calls: dict[str, Callable[[], object]] = {
                    str(p): lambda p=p, images=images, fixed=fixed: fixed[p].run(images[p]) for p in own
                }
                times = {name: summarize(ms) for name, ms in interleave(calls, rounds).items()}
            except Exception as error:  # runtimes raise what they like
                raise ValueError(f"{runtime} can't run {batch} images of {size} pixels: {error}") from error
            first = times[str(own[0])]
            for path in own:
                ms = times[str(path)]
                row = {"runtime": runtime, "batch_size": batch, "file": names[path], "baseline": names[own[0]]}
                row |= {"dtype": exported[path].dtype, "image_size": size}
                row |= {f"{name}_ms": f"{value:.2f}" for name, value in ms.items()}
                row |= {f"{name}_ratio": f"{first[name] / ms[name]:.3f}" for name in ("min", "median")}
                row["images_per_s"] = f"{batch / ms['median'] * 1e3:.1f}"
                rows.append(row | facts)
    console = wide_console()
    console.print(_table(rows))
    console.print(_platform_table(rows))
    if output is not None:
        write_rows(output, rows)
        console.print(f"figures: {output}", soft_wrap=True)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("runtime", "batch_size", "file", "min_ms", "min_ratio", "median_ms", "median_ratio", "p20_ms", "p80_ms")
    columns = (*columns, "images_per_s")
    table = Table(
        *columns, title="Exported networks; a ratio above 1 is faster than the runtime's first", title_justify="left"
    )
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    table.caption = f"{rows[0]['device']}, {rows[0]['threads']} threads, commit {rows[0]['commit']}"
    return table


def _platform_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for this machine in each runtime, a network a column, as in table 3 of the FACS paper."""
    networks = list(dict.fromkeys(_network(row) for row in rows))
    title = f"Latency, {rows[0]['image_size']}×{rows[0]['image_size']}, median of {rows[0]['rounds']} runs, ms"
    table = Table(title=title, title_justify="left")
    for column in ("compute platform", "threads", "GFLOP/s, measured", "runtime", "batch", *networks):
        table.add_column(column)
    for runtime, batch in dict.fromkeys((row["runtime"], row["batch_size"]) for row in rows):
        found = {_network(r): r for r in rows if (r["runtime"], r["batch_size"]) == (runtime, batch)}
        where = next(iter(found.values()))
        cells = [found[name]["median_ms"] if name in found else "–" for name in networks]
        table.add_row(where["device"], str(where["threads"]), where["gflops"], runtime, str(batch), *cells)
    return table


def _network(row: dict[str, Any]) -> str:
    return str(Path(row["file"]).with_suffix(""))
