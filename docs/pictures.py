"""Draws the pictures of the operators' pages: `python docs/pictures.py`, or with stems to draw those alone.

What each pool makes of a photograph and of a step, and what each channel operator makes of maps of edges. The
photograph is scikit-learn's `flower.jpg`.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import downmix
from downmix.tools.pool import ContrastLogit, reduce_picture

DOCS = Path(__file__).parent
POOLS = {  # page: word of create_pool, name in the picture
    "soft_pool": ("soft", "SoftPool"),
    "power_pool": ("power", "power average, p = 2"),
    "stochastic_pool": ("stochastic", "stochastic"),
    "s3_pool": ("s3", "S3"),
    "lip_pool": ("lip", "LIP, logits 20·contrast"),
    "mixed_pool": ("mixed", "mixed, α = ½"),
}
WINDOW = 4
DRAWS = 3  # shown of what is random in training
Row = list[tuple[str, Tensor]]  # captions and maps
Rows = dict[str, Row]  # by what they are
COLORS = {"input": "0.75", "average": "tab:blue", "maximum": "tab:orange", "method": "tab:red"}


def photograph(side: int = 120) -> Tensor:
    """The heart of the flower, [3, side, side] in [0, 1]."""
    pixels = torch.from_numpy(load_sample_image("flower.jpg").copy()).movedim(2, 0) / 255
    top, left = 214 - side // 2, 304 - side // 2
    return pixels[:, top : top + side, left : left + side]


def draw_pool(stem: str) -> None:
    """Above the photograph, the mean and the maximum of it and what the method makes of it; below two steps."""
    method, name = POOLS[stem]
    picture = photograph()
    average, maximum, *results = reduce_picture(picture, ["avg", "max", method], times=2)
    panels = [("photograph", picture), ("average", average.picture), ("maximum", maximum.picture)]
    panels += [(f"{name}, {one.mode}" if one.mode else name, one.picture) for one in results]
    figure = plt.figure(figsize=(2.2 * len(panels), 4.7), layout=ConstrainedLayoutEngine(h_pad=0.08))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 0.95))
    for axis, (label, shown) in zip(above.subplots(1, len(panels)), panels, strict=True):
        _show(axis, shown, label)
    axes = below.subplots(1, 2, sharey=True)
    generator = torch.Generator().manual_seed(0)
    step = torch.where(torch.arange(48) < 22, 0.2, 0.8)
    noisy = (step + 0.12 * torch.randn(48, generator=generator)).clamp(0, 1)
    for axis, signal, title in zip(axes, (step, noisy), ("a step", "a noisy step"), strict=True):
        _draw_step(axis, signal, method, name)
        axis.set_title(f"{title}, windows of {WINDOW}", fontsize=9, loc="left")
    axes[1].legend(fontsize=7, loc="lower right", framealpha=1)
    save(figure, DOCS / "pools" / f"{stem}.png", colors=256)


def _draw_step(axis: Any, signal: Tensor, method: str, name: str) -> None:
    places = torch.arange(len(signal))
    axis.bar(places, signal, width=1, color=COLORS["input"], label="input")
    centres = places.reshape(-1, WINDOW).float().mean(1)
    for label, word in (("average", "avg"), ("maximum", "max")):
        axis.plot(centres, pool_signal(word, signal), "o-", color=COLORS[label], ms=3, lw=1, label=label)
    if method in ("stochastic", "s3"):
        for i in range(DRAWS):
            drawn = pool_signal(method, signal, seed=i, training=True)
            axis.plot(centres, drawn, "x", color=COLORS["method"], ms=4, label=f"{name}, draws" if i == 0 else None)
        name += ", evaluation"
    axis.plot(centres, pool_signal(method, signal), "o-", color=COLORS["method"], ms=4, lw=1.8, label=name)
    axis.tick_params(labelsize=7)
    axis.set(ylim=(0, 1.05))


def pool_signal(method: str, signal: Tensor, seed: int = 0, training: bool = False) -> Tensor:
    """[L] to [L / WINDOW]."""
    options: dict[str, Any] = {"logits": ContrastLogit()} if method == "lip" else {}
    torch.manual_seed(seed)
    with torch.no_grad():
        return downmix.create_pool(method, (1, WINDOW), **options).train(training)(signal[None, None, None])[0, 0, 0]


def _show(axis: Any, picture: Tensor, label: str) -> None:
    axis.imshow(picture.clamp(0, 1).movedim(0, 2), interpolation="nearest")
    axis.set_title(label, fontsize=9, loc="left")
    axis.axis("off")


def save(figure: Any, path: Path, colors: int) -> None:
    """Writes a PNG with a palette, a third of the size."""
    path.parent.mkdir(exist_ok=True)
    full = io.BytesIO()
    figure.savefig(full, dpi=100)
    plt.close(figure)
    Image.open(full).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def edges() -> Tensor:
    """How strong edges are in the photograph, [1, 8, H, W] in [0, 1]: in four directions, fine, then coarse."""
    grey = photograph().mean(0)[None, None]
    maps = []
    for sigma in (1.0, 3.0):
        radius = round(3 * sigma)
        y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1.0)] * 2, indexing="ij")
        bell = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
        slopes = [bell * (x * math.cos(angle) + y * math.sin(angle)) for angle in torch.arange(4) * math.pi / 4]
        kernels = torch.stack(slopes)[:, None]
        strengths = F.conv2d(F.pad(grey, [radius] * 4, mode="replicate"), kernels).abs()
        maps.append(strengths / (4 * strengths.mean()))
    return torch.cat(maps, 1).clamp(max=1)


def draw_pix(x: Tensor) -> Rows:
    shown: Row = []
    for p, what, options in ((0.4, "pick", {}), (0.6, "mix", {}), (0.5, "weighted", {"fusion": "weighted"})):
        y = downmix.pick_or_mix(x, torch.full((1, 2), p), 4, **options)
        shown += [(f"{what}, {p}", one) for one in y[0]]
    return {
        "PiX by 4 with a given p: below ½ the maximum of four maps, else their mean, times p; weighted, both": shown
    }


def draw_channel_pool(x: Tensor) -> Rows:
    shown: Row = []
    for mode in ("max", "mean"):
        shown += [(mode, one) for one in downmix.ChannelPool(4, mode=mode)(x)[0]]
    overlapping = downmix.ChannelPool(4, 2)(x)[0]
    return {
        "maximum and mean of four": shown,
        "maximum of four, stride 2": [(f"of {2 * i + 1} to {2 * i + 4}", one) for i, one in enumerate(overlapping)],
    }


def draw_fbs(x: Tensor) -> Rows:
    conv = downmix.FBSConv2d(8, 8, 1, density=0.5).eval()
    nn.init.dirac_(conv.conv.weight)  # so that saliency is all that changes the maps
    squeeze = downmix.FBSSqueeze(8, 2)
    for saliency in (conv.saliency, squeeze.saliency):
        nn.init.eye_(saliency.linear.weight).mul_(4)
        nn.init.zeros_(saliency.linear.bias)
    g = conv.saliency(x)[0]
    kept = squeeze(x)[0]
    return {
        "FBS, density ½; here a channel's saliency is 4 times its own mean": [
            (f"× {scale:.2f}" if one.any() else f"off, {scale:.2f}", one)
            for scale, one in zip(g, conv(x)[0], strict=True)
        ],
        "FBS squeeze by 2: the most salient half": [("", one) for one in kept],
    }


def draw_squeeze_excite(x: Tensor) -> Rows:
    layer = _randomised(downmix.SqueezeExcite(8, 2))
    return {"SE with random weights": _gated(x, layer(x))}


def draw_cbam(x: Tensor) -> Rows:
    layer = _randomised(downmix.CBAM(8, 2)).eval()
    seen: list[Tensor] = []
    layer.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(torch.sigmoid(output)))
    y = layer(x)
    return {"CBAM with random weights": _gated(x, y / seen[0], y), "its gate for pixels": [("", seen[0][0, 0])]}


def draw_squeeze(x: Tensor) -> Rows:
    rows: Rows = {}
    for title, groups, sources in (
        ("1×1 convolution, BatchNorm, ReLU; random weights", 1, ["1 to 8"] * 4),
        ("the same in 2 groups, then shuffled", 2, ["1 to 4", "5 to 8"] * 2),
    ):
        y = _randomised(downmix.ConvSqueeze(8, 2, groups=groups))(x)[0]
        brightest = y.flatten(1).quantile(0.99, 1)
        rows[f"{title}; by each one's own maximum"] = [
            (f"of {source}", one / high) for source, one, high in zip(sources, y, brightest, strict=True)
        ]
    return rows


def _randomised(layer: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=3 / math.sqrt(parameter[0].numel()))
    return layer


def _gated(x: Tensor, scaled: Tensor, shown: Tensor | None = None) -> Row:
    gates = scaled.sum((2, 3)) / x.sum((2, 3))
    return [(f"× {gate:.2f}", one) for gate, one in zip(gates[0], (scaled if shown is None else shown)[0], strict=True)]


def draw_channels(stem: str) -> None:
    """Above, maps of edges; below, what the operator makes of them, all from black 0 to white 1."""
    x = edges()
    directions = ("|", "/", "–", "\\")
    names = [f"{size} {direction}" for size in ("fine", "coarse") for direction in directions]
    with torch.no_grad():
        made = CHANNELS[stem](x)
    inputs = [(f"{i + 1}: {name}", one) for i, (name, one) in enumerate(zip(names, x[0], strict=True))]
    rows = {"a photograph, and its edges of four directions": [("", photograph().mean(0)), *inputs]}
    rows |= {title: [("", None), *maps] for title, maps in made.items()}
    figure = plt.figure(figsize=(9 * 1.03, 1.45 * len(rows)), constrained_layout=True)
    for row, (title, maps) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        row.suptitle(title, fontsize=9, x=0.004 if row is figure.subfigs[0] else 0.115, ha="left")
        axes = row.subplots(1, 9)
        for axis in axes:
            axis.axis("off")
        for axis, (caption, one) in zip(axes, maps, strict=False):
            if one is not None:
                axis.imshow(one, cmap="gray", vmin=0, vmax=1)
                axis.set_title(caption, fontsize=8, pad=2)
    save(figure, DOCS / "channels" / f"{stem}.png", colors=48)


CHANNELS = {
    "pix": draw_pix,
    "channel_pool": draw_channel_pool,
    "fbs": draw_fbs,
    "squeeze_excite": draw_squeeze_excite,
    "cbam": draw_cbam,
    "squeeze": draw_squeeze,
}


def main(stems: Sequence[str]) -> None:
    matplotlib.use("Agg")
    for stem in stems or (*POOLS, *CHANNELS):
        (draw_pool if stem in POOLS else draw_channels)(stem)


if __name__ == "__main__":
    main(sys.argv[1:])
