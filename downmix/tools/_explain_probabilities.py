"""`downmix explain probabilities`: how often PiX layers pick and mix, and for which classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..explain import LayerProbabilities, last_of_each_stage, measure_probabilities, pix_layers
from ..train import Recipe
from ..train.sources import load_data
from ..train.writable import check_folder
from . import _probability_report as report
from ._console import wide_console
from ._trained import held_out, trained_network, view

HELP = "The probabilities of every PiX layer over a data set: picks and mixes, per class, and what switches."


def add_arguments(parser: Any) -> None:
    parser.add_argument("model", type=str, help="the network, by its name in timm or NAME:key=value,…")
    parser.add_argument("--checkpoint", type=str, default=None, help="trained weights; by default those that timm has")
    parser.add_argument("--data", type=str, default="digits", help="as in `downmix compare`; the held-out images count")
    parser.add_argument("--data_dir", type=str, default=None, help="where the data lie or are downloaded to")
    parser.add_argument("--image_size", type=int, default=None, help="height and width; by default the network's own")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once")
    parser.add_argument("--limit", type=int, default=None, help="so many images, evenly spaced; by default all")
    parser.add_argument("--layers", nargs="+", type=str, default=None, help="drawn; by default the last of each stage")
    parser.add_argument("--classes", nargs="+", type=str, default=None, help="drawn, by name; by default up to ten")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the pictures")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--output", type=Path, default=Path("runs/explain"), help="folder of the results")


def run(args: Any) -> None:
    probabilities(**args)


def probabilities(
    model: str,
    *,
    checkpoint: str | None = None,
    data: str = "digits",
    data_dir: str | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    layers: list[str] | None = None,
    classes: list[str] | None = None,
    format: str = "png",
    device: str = "cpu",
    output: Path = Path("runs/explain"),
    console: Console | None = None,
) -> dict[str, LayerProbabilities]:
    """Measures p of every PiX layer over the held-out images, and writes, draws and prints what was found.

    The arguments are the command's. ``output`` gets ``probabilities.json``, ``probabilities.csv`` and two pictures.

    Raises:
        ValueError: if the network, its weights, the data, a layer, a class or ``output`` can't be used.
    """
    check_folder(output)
    console = console or wide_console()
    split = load_data(Recipe(data=data, data_dir=data_dir))
    names = split.class_names
    network = trained_network(model, checkpoint, device, num_classes=split.num_classes)
    shown_classes = _choose("class", classes, names) if classes else report.some_classes(names)
    how = view(network, image_size)
    loader = held_out(split, how, batch_size, limit)
    shown_layers = _choose("layer", layers, list(pix_layers(network))) if layers else last_of_each_stage(network)
    batches = track(loader, "running the network", console=console, transient=True)
    found = measure_probabilities(network, batches, split.num_classes)
    about = {"model": model, "checkpoint": checkpoint, "data": data, "input_size": list(how["input_size"])}
    report.write_json(found, names, about, output / "probabilities.json")
    report.write_csv(found, output / "probabilities.csv")
    pictures = [output / f"probabilities.{format}", output / f"layers.{format}"]
    title = f"{model} on {data}"
    report.draw_stages(
        {name: found[name] for name in shown_layers if name in found}, names, shown_classes, title, pictures[0]
    )
    report.draw_layers(found, title, pictures[1])
    console.print(table(found, title))
    console.print(f"results: {output}/probabilities.json, probabilities.csv", soft_wrap=True)
    console.print(f"pictures: {pictures[0]}, {pictures[1].name}", soft_wrap=True)
    return found


def _choose(what: str, wanted: list[str], known: list[str]) -> list[str]:
    for name in wanted:
        if name not in known:
            listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            raise ValueError(f"there is no {what} {name!r}; known are {listed}")
    return wanted


def table(found: dict[str, LayerProbabilities], title: str) -> Table:
    """A layer a row."""
    images = int(next(iter(found.values())).images.sum())
    shown = Table(title=f"{title}, {images:,} images", title_justify="left")
    shown.add_column("PiX layer", overflow="fold")
    for column in report.COLUMNS:
        shown.add_column(column, justify="right")
    for name, layer in found.items():
        shown.add_row(name, *report.cells(layer))
    return shown
