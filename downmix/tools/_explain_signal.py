"""`downmix explain signal`: what one layer makes of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from ..explain import PiXSignal, PoolSignal, signal_layers, trace_signal
from ._console import wide_console
from ._picture import check_picture, save
from ._trained import read_images, trained_network

HELP = "Where the signal goes: what a PiX layer picks and mixes in an image, or how a pool weighs its input."


def add_arguments(parser: Any) -> None:
    parser.add_argument("image", type=Path, help="an image file of any size")
    parser.add_argument("--model", type=str, required=True, help="the network, by its name in timm or NAME:key=value,…")
    parser.add_argument("--checkpoint", type=str, default=None, help="trained weights; by default those that timm has")
    parser.add_argument("--layer", type=str, default=None, help="a PiX layer or a pool; by default the first")
    parser.add_argument(
        "--channels", nargs="+", type=int, default=None, help="drawn; by default those that vary most over the image"
    )
    parser.add_argument("--image_size", type=int, default=None, help="height and width; by default the network's own")
    parser.add_argument("--output", type=Path, default=Path("runs/signal.png"), help="picture, *.png or *.svg")


def run(args: Any) -> None:
    signal(**args)


def signal(
    image: Path,
    *,
    model: str,
    checkpoint: str | None = None,
    layer: str | None = None,
    channels: list[int] | None = None,
    image_size: int | None = None,
    output: Path = Path("runs/signal.png"),
    console: Console | None = None,
) -> PiXSignal | PoolSignal:
    """Draws what a layer makes of an image, an output channel a row.

    The arguments are the command's.

    Raises:
        ValueError: if the image, the network, its weights, the layer, a channel or ``output`` can't be used.
    """
    check_picture(output)
    console = console or wide_console()
    network = trained_network(model, checkpoint)
    names = signal_layers(network)
    if not (layer or names):
        raise ValueError(f"{model} has neither a PiX layer nor a pool that can be shown")
    layer = layer or names[0]
    (pixels,), (seen,) = read_images(network, [image], image_size)
    found = trace_signal(network, layer, pixels)
    shown = _choose(channels, found.output)
    draw(found, seen, shown, f"{layer} of {model}", output)
    if isinstance(found, PiXSignal):
        console.print(f"{layer}: {int(found.picks.sum())} of {len(found.picks)} channels pick, the others mix")
    console.print(f"picture: {output}", soft_wrap=True)
    return found


def _choose(channels: list[int] | None, output: Tensor) -> list[int]:
    count = len(output)
    if channels is None:
        return output.flatten(1).std(1, correction=0).argsort(descending=True)[:6].tolist()
    for channel in channels:
        if not 0 <= channel < count:
            raise ValueError(f"the layer has the output channels 0 to {count - 1}, got {channel}")
    return channels


def draw(found: PiXSignal | PoolSignal, image: Tensor, channels: list[int], title: str, path: Path) -> None:
    """The image, and a row a channel; the values of a row share one scale."""
    rows, columns = len(channels), 5 if isinstance(found, PiXSignal) else 4
    figure = Figure(figsize=(2.2 * columns, 2.1 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis in axes[1:, 0]:
        axis.axis("off")
    axes[0, 0].imshow(image.numpy())
    axes[0, 0].set_title("image", fontsize=9)
    for row, channel in zip(axes[:, 1:], channels, strict=True):
        if isinstance(found, PiXSignal):
            _pix_row(figure, row, found, channel)
        else:
            _pool_row(figure, row, found, channel)
    figure.suptitle(title)
    save(figure, path, dpi=100)


def _pix_row(figure: Any, axes: Any, found: PiXSignal, channel: int) -> None:
    verb = "picks" if found.picks[channel] else "mixes"
    count = int(found.picked.max()) + 1
    cmap = matplotlib.colormaps["tab10"] if count <= 10 else matplotlib.colormaps["turbo"].resampled(count)
    limits = {"vmin": -0.5, "vmax": 9.5} if count <= 10 else {}
    index = axes[0].imshow(found.picked[channel].numpy(), cmap=cmap, interpolation="nearest", **limits)
    bar = figure.colorbar(index, ax=axes[0], ticks=range(count), shrink=0.8)
    bar.ax.set_ylim(-0.5, count - 0.5)
    maps = {"maximum": found.maximum, "mean": found.mean, f"output, p = {found.p[channel]:.2f}": found.output}
    axes[0].set_ylabel(f"channel {channel} {verb}", fontsize=9)
    axes[0].set_title("channel of the maximum", fontsize=9)
    _values(figure, axes[1:], {name: values[channel] for name, values in maps.items()})


def _pool_row(figure: Any, axes: Any, found: PoolSignal, channel: int) -> None:
    axes[0].set_ylabel(f"channel {channel}", fontsize=9)
    shown = found.weights[channel].numpy()
    # A power average weighs what is below 0 by less than 0.
    weights = axes[1].imshow(shown, cmap="magma", vmin=min(0.0, shown.min()), interpolation="nearest")
    axes[1].set_title("weight in the output", fontsize=9)
    figure.colorbar(weights, ax=axes[1], shrink=0.8)
    _values(figure, axes[[0, 2]], {"input": found.input[channel], "output": found.output[channel]})


def _values(figure: Any, axes: Any, maps: dict[str, Tensor]) -> None:
    low, high = min(float(m.min()) for m in maps.values()), max(float(m.max()) for m in maps.values())
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        axis.imshow(values.float().numpy(), vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(name, fontsize=9)
    figure.colorbar(axes[-1].images[0], ax=axes[-1], shrink=0.8)
