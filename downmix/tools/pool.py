"""`downmix pool`: what each pooling method makes of a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from ..layers.pools import POOLS, create_pool
from ..ops._windows import output_sizes
from ..train.writable import check_folder
from ._console import wide_console
from ._picture import check_picture, draw_grid, read_picture, write_picture

HELP = "Reduce a picture with each pooling method and draw the results beside each other."
# Those that draw at random in training.
_MODES: dict[str, tuple[str, ...]] = dict.fromkeys(("stochastic", "s3"), ("training", "evaluation"))
_SHOWN_SIDE = 100  # pixels; at this size they can be told apart in the grid


@dataclass
class Reduced:
    """What a method made of a picture.

    Attributes:
        method: its name.
        mode: ``"training"`` or ``"evaluation"`` where that makes a difference.
        times: how often the method was applied.
        picture: [C, H', W'].
        mean: of all values.
        contrast: standard deviation, as a share of the picture's own; NaN where that is 0.
        from_average: mean absolute difference from average pooling.
    """

    method: str
    mode: str
    times: int
    picture: Tensor
    mean: float
    contrast: float
    from_average: float

    @property
    def label(self) -> str:
        """What stands above the picture."""
        if self.method == "lip":
            return "lip, logits 20·|x − 3×3 mean|"
        return f"{self.method}, {self.mode}" if self.mode else self.method

    @property
    def cells(self) -> tuple[str, str, str]:
        """The figures, as tables show them."""
        contrast = "–" if math.isnan(self.contrast) else f"{100 * self.contrast:.1f} %"
        return f"{self.mean:.3f}", contrast, f"{self.from_average:.4f}"


class ContrastLogit(nn.Module):
    """20·|x − mean of the 3×3 around|, averaged over channels: LIP with these keeps what stands out.

    LIP's own logits are learnt, and all equal before that, which is average pooling.
    """

    def forward(self, x: Tensor) -> Tensor:
        around = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return 20 * (x - around).abs().mean(1, keepdim=True).expand_as(x)


def add_arguments(parser: Any) -> None:
    parser.add_argument("image", type=Path, help="a picture of any kind and size; transparent parts stand on white")
    parser.add_argument(
        "--method", nargs="+", type=str, default=None, help="pooling methods; by default all that know the stride"
    )
    parser.add_argument("--kernel_size", type=int, default=2, help="height and width of a window")
    parser.add_argument("--stride", type=int, default=None, help="step between windows; by default kernel_size")
    parser.add_argument(
        "--times", type=int, default=None, help=f"how often; by default until it is {_SHOWN_SIDE} pixels or less"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the methods that draw at random")
    parser.add_argument("--output", type=Path, default=Path("runs/pool.png"), help="the picture to draw")
    parser.add_argument("--separate", type=Path, default=None, help="folder for each method's own result, as PNG")


def run(args: Any) -> None:
    check_picture(args.output)
    if args.separate:
        check_folder(args.separate, "separate")
    picture = read_picture(args.image)
    # S3 is defined for no other stride; who asks for it by name is told so.
    every = [name for name in POOLS if name != "s3" or args.stride in (None, args.kernel_size)]
    found = reduce_picture(
        picture, args.method or every, args.kernel_size, args.stride, times=args.times, seed=args.seed
    )
    title = f"{args.image.name}, {describe_sizes(picture, found[0], args.kernel_size)}"
    draw_grid([("the picture", picture), *((one.label, one.picture) for one in found)], title, args.output)
    console = wide_console()
    console.print(f"{title}; the picture's mean is {picture.mean():.3f}", soft_wrap=True, markup=False)
    console.print(_table(found))
    if any(one.picture.max() > 1 for one in found):
        console.print("values above 1 are drawn as white")
    for one in found if args.separate else ():
        write_picture(one.picture, args.separate / f"{one.method}{one.mode and f'_{one.mode}'}.png")
    if args.separate:
        console.print(f"results: {args.separate}/*.png", soft_wrap=True, markup=False)
    console.print(f"picture: {args.output}", soft_wrap=True, markup=False)


def describe_sizes(picture: Tensor, reduced: Reduced, kernel_size: int) -> str:
    """From which size to which, in what windows and how often."""
    (_, height, width), (_, low, narrow) = picture.shape, reduced.picture.shape
    times = f", {reduced.times} times over" if reduced.times > 1 else ""
    return f"{width}×{height} to {narrow}×{low}, windows of {kernel_size}×{kernel_size}{times}"


def reduce_picture(
    picture: Tensor,
    methods: Sequence[str],
    kernel_size: int = 2,
    stride: int | None = None,
    *,
    times: int | None = None,
    seed: int = 0,
) -> list[Reduced]:
    """Pools a picture, again and again, with each method; with those that draw at random in both modes.

    Args:
        picture (Tensor[C, H, W]): values in [0, 1].
        methods: names that :func:`downmix.create_pool` knows; equal ones count once.
        kernel_size: height and width of a window.
        stride: step between windows, ``kernel_size`` if None.
        times: how often the method is applied; None as often as the result has more than 100 pixels on a side.
        seed: every method draws from this one.

    Raises:
        ValueError: if a method is unknown, a number out of range, or the picture too small.
    """
    times = _count_times(picture.shape[-2:], kernel_size, kernel_size if stride is None else stride, times)
    spread = float(picture.std(correction=0)) if picture.min() < picture.max() else math.nan
    average = _apply("avg", "", picture, kernel_size, stride, times, seed)
    found = []
    for name in dict.fromkeys(methods):
        for mode in _MODES.get(name, ("",)):
            result = _apply(name, mode, picture, kernel_size, stride, times, seed)
            contrast = float(result.std(correction=0)) / spread
            from_average = float((result - average).abs().mean())
            found.append(Reduced(name, mode, times, result, float(result.mean()), contrast, from_average))
    return found


def _apply(
    name: str, mode: str, picture: Tensor, kernel_size: int, stride: int | None, times: int, seed: int
) -> Tensor:
    options: dict[str, Any] = {"logits": ContrastLogit()} if name == "lip" else {}
    pool = create_pool(name, kernel_size, stride, **options).train(mode == "training")
    x = picture[None]
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in range(times):
            x = pool(x)
    return x[0]


def _table(found: list[Reduced]) -> Table:
    table = Table("method")
    for name in ("mean", "contrast kept", "from average"):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(one.label, *one.cells)
    return table


def _count_times(size: Sequence[int], kernel_size: int, stride: int, times: int | None) -> int:
    if min(kernel_size, stride, 1 if times is None else times) < 1:
        raise ValueError(f"kernel_size, stride and times must be at least 1, got {kernel_size}, {stride} and {times}")
    now, done = list(size), 0
    while done != times:
        after = output_sizes(now, [kernel_size] * 2, [stride] * 2, [0] * 2, [1] * 2, False)
        if done and times is None and (max(now) <= _SHOWN_SIDE or min(after) < 1 or after == now):
            break
        if min(after) < 1:
            raise ValueError(
                f"a picture of {size[1]}×{size[0]} pixels is too small for windows of {kernel_size}×{kernel_size}"
                f"{f', {times} times over' if times and times > 1 else ''}; choose a larger picture or smaller numbers"
            )
        now, done = after, done + 1
    return done
