"""`downmix report`: one page that shows what trainings, comparisons and benchmarks gave."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from .._extras import need
from ..train import Recipe
from ..train.writable import check_file
from ._console import progress_bars, wide_console

HELP = "Write one self-contained HTML page about any number of outputs of train, compare and bench."


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of train and compare, compare.csv, CSV files of bench"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/report.html"), help="the page")
    parser.add_argument("--title", type=str, default=None, help="of the page; by default the names of the folders")
    parser.add_argument(
        "--limit", type=int, default=1000, help="held-out images that networks are run over, evenly spaced; 0 for all"
    )
    parser.add_argument("--data", type=str, default=None, help="the data, in place of what the recipes say")
    parser.add_argument("--data_dir", type=str, default=None, help="where they lie, in place of what the recipes say")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto")


def run(args: Any) -> None:
    report(**args)


def report(
    runs: list[Path],
    *,
    output: Path = Path("runs/report.html"),
    title: str | None = None,
    limit: int = 1000,
    data: str | None = None,
    data_dir: str | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> Path:
    """Writes the page. What needs data or weights that are missing is left out, and the page says so.

    The arguments are the command's.

    Raises:
        ValueError: if a run can't be read, ``limit`` is negative, or ``output`` can't be written.
        FileNotFoundError: if there is no such run.
        ImportError: if packages are missing.
    """
    need("report", "jinja2", "plotly")
    from ._report.gather import gather
    from ._report.page import render
    from ._report.runs import read_inputs

    if limit < 0:
        raise ValueError(f"limit must be 0, for all images, or more, got {limit}")
    Recipe(device=device).torch_device()  # whose error is a sentence
    check_file(output)
    fields = {"data": data, "data_dir": data_dir, "device": device}
    fields = {name: value for name, value in fields.items() if value is not None}
    console = console or wide_console()
    inputs = read_inputs(runs)
    with progress_bars(console, transient=True) as progress:
        sections = gather(inputs, limit or None, fields, progress)
    title = title or ", ".join(dict.fromkeys(path.stem for path in runs))
    made = f"Made on {datetime.now():%Y-%m-%d at %H:%M} from {', '.join(map(str, runs))}."
    output.write_text(render(title, made, inputs.notes, sections), encoding="utf-8")
    console.print(f"report: {output}, {output.stat().st_size / 1e6:.1f} MB, most of it Plotly", soft_wrap=True)
    return output
