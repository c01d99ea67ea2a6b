"""What `benchmarks/ops.py` times: operators on real layer shapes, and what they compete with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import downmix
from downmix.ops import lip_pool, pix, power_pool, soft_pool, stochastic_pool
from downmix.ops._windows import output_sizes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Batch sizes of PiX's inputs, and that of all other cases: on a GPU one of which no map fits into the cache.
BATCHES, BATCH = ((1, 8, 64, 256), 64) if DEVICE.type == "cuda" else ((1, 8, 32), 8)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# The squeeze inputs of ResNet-50: channels, height, reduction. Equal ones stand once.
SQUEEZES = (
    (64, 56, 1),
    (256, 56, 4),
    (256, 56, 2),
    (512, 28, 4),
    (512, 28, 2),
    (1024, 14, 4),
    (1024, 14, 2),
    (2048, 7, 4),
)
# Channels, spatial size, kernel, stride, padding.
POOLS = (
    (64, (112, 112), 2, 2, 0),
    (64, (112, 112), 3, 2, 1),
    (256, (56, 56), 2, 2, 0),
    (256, (56, 56), 3, 2, 1),
    (64, (12544,), 2, 2, 0),
    (32, (16, 56, 56), 2, 2, 0),
    (256, (20, 20), 5, 1, 2),  # of YOLO's SPPF
)
# How the time grows with the number of elements, with the reduction, and with the dtype.
SIZES = tuple(2**n for n in range(16, 29, 2))
REDUCTIONS = (3, 6, 8, 16)  # 2 and 4 are among the squeezes
DTYPES = (torch.float16, torch.bfloat16, torch.float64)


@dataclass
class Case:
    """One shape and layout: what is computed, its reference, and what else is timed, all as functions of the leaves.

    ``parameters`` are those of a contender that get gradients too.
    """

    op: str
    shape: str
    layout: str
    leaves: list[Tensor]
    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    others: dict[str, Callable[..., Tensor]]
    compiled: bool = True
    checked: bool = True
    parameters: dict[str, list[nn.Parameter]] = field(default_factory=dict)


def squeeze(channels: int, reduction: int, layout: str) -> nn.Module:
    """The squeeze that PiX replaces, with its BatchNorm folded into the convolution."""
    convolution = nn.Conv2d(channels, channels // reduction, 1)
    return nn.Sequential(convolution, nn.ReLU(inplace=True)).to(DEVICE, memory_format=LAYOUTS[layout])  # type: ignore[call-overload]


def pix_case(shape: tuple[int, ...], reduction: int, layout: str, dtype: torch.dtype = torch.float32) -> Case:
    batch, channels, *_ = shape
    x = torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    p = torch.rand(batch, -(-channels // reduction), device=DEVICE, dtype=dtype)
    constants = (reduction, 0.5, "threshold", "max+avg", False)
    return Case(
        "pick_or_mix",
        f"{'x'.join(map(str, shape))} r={reduction}",
        layout,
        [x, p],
        lambda x, p: downmix.pick_or_mix(x, p, reduction),
        lambda x, p: pix._reference(x, p, *constants),
        {},
    )


def pix_cases(batches: Sequence[int]) -> Iterator[Case]:
    # torch.compile, whose compiling takes most of the time, competes at one batch size.
    for batch in batches:
        for channels, size, reduction in SQUEEZES:
            for layout in LAYOUTS:
                case = pix_case((batch, channels, size, size), reduction, layout)
                conv = squeeze(channels, reduction, layout)
                case.others["squeeze"] = lambda x, p, conv=conv: conv(x)
                case.compiled = batch == BATCH
                yield case


def layer_case(
    batch: int, channels: int, size: int, reduction: int, layout: str, dtype: torch.dtype = torch.float32
) -> Case:
    """A whole PiX layer, against its parts one after the other and the squeeze with its BatchNorm, as in training."""
    layer = downmix.PiX(channels, reduction).to(DEVICE, dtype)
    replaced: Any = downmix.create_squeeze("conv", channels, reduction)
    replaced.to(DEVICE, dtype, memory_format=LAYOUTS[layout])
    x = torch.randn(batch, channels, size, size, device=DEVICE, dtype=dtype)

    def definition(x: Tensor) -> Tensor:
        p = torch.sigmoid(F.linear(x.mean((2, 3)), layer.weight.flatten(1).to(x.dtype)))
        return pix._reference(x, p, *layer.rule)

    return Case(
        "pix_layer",
        f"{batch}x{channels}x{size}x{size} r={reduction}",
        layout,
        [x.contiguous(memory_format=LAYOUTS[layout])],
        layer,
        definition,
        {
            "part by part": lambda x: downmix.pick_or_mix(x, layer.probabilities(x), reduction),
            "squeeze": lambda x: replaced.train(torch.is_grad_enabled())(x),
        },
        compiled=False,
        checked=dtype == torch.float32,  # rounded to half precision, some p stand on the other side of the threshold
        parameters={name: [layer.weight] for name in ("downmix", "eager", "part by part")}
        | {"squeeze": list(replaced.parameters())},
    )


def layer_cases() -> Iterator[Case]:
    for shape, layout in product(SQUEEZES, LAYOUTS):
        yield layer_case(BATCH, *shape, layout)
        if DEVICE.type == "cuda":
            yield layer_case(BATCHES[-1], *shape, layout, torch.bfloat16)


def scaling_cases() -> Iterator[Case]:
    for layout in LAYOUTS:
        shapes = [((size // 65536, 64, 32, 32), 4, torch.float32) for size in SIZES]
        shapes += [((BATCH, 256, 56, 56), reduction, torch.float32) for reduction in REDUCTIONS]
        shapes += [((BATCH, 256, 56, 56), 4, dtype) for dtype in DTYPES]
        for shape, reduction, dtype in shapes:
            case = pix_case(shape, reduction, layout, dtype)
            case.compiled = False
            yield case


def pool_cases(batch: int, dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    for channels, size, kernel, stride, padding in POOLS:
        n = len(size)
        ours, maximum, average = (
            getattr(*where) for where in ((downmix, f"soft_pool{n}d"), (F, f"max_pool{n}d"), (F, f"avg_pool{n}d"))
        )
        constants = ([kernel] * n, [stride] * n, [padding] * n, [1] * n, False, "exact")
        for layout, memory_format in LAYOUTS.items():
            if n != 2 and layout != "nchw":
                continue
            x = torch.randn(batch, channels, *size, device=DEVICE, dtype=dtype)
            yield Case(
                f"soft_pool{n}d",
                f"{batch}x{channels}x{'x'.join(map(str, size))} k={kernel} s={stride} p={padding}",
                layout,
                [x.contiguous(memory_format=memory_format) if n == 2 else x],
                lambda x, f=ours, a=(kernel, stride, padding): f(x, *a),
                lambda x, c=constants: soft_pool._reference(x, *c),
                {
                    "max_pool": lambda x, f=maximum, a=(kernel, stride, padding): f(x, *a),
                    "avg_pool": lambda x, f=average, a=(kernel, stride, padding): f(x, *a),
                },
            )


def other_pool_cases(batch: int) -> Iterator[Case]:
    """The other pools, on fewer shapes. S3 and mixed pooling, and on a GPU all, are their own references."""
    for channels, size, kernel, stride, padding in POOLS[:2]:
        window, constants = (kernel, stride, padding), ([kernel] * 2, [stride] * 2, [padding] * 2, [1] * 2, False)
        shape = f"{batch}x{channels}x{'x'.join(map(str, size))} k={kernel} s={stride} p={padding}"
        x, logits = (torch.randn(batch, channels, *size, device=DEVICE) for _ in range(2))
        # Whole numbers, and a prime above their sums, so that rounding decides no draw.
        counts = torch.randint(9, x.shape, device=DEVICE).float()
        draws = torch.randint(1, 1009, (*x.shape[:2], *output_sizes(size, *constants)), device=DEVICE) / 1009
        lp = {} if padding else {"lp_pool": partial(F.lp_pool2d, norm_type=2.0, kernel_size=kernel, stride=stride)}
        mixed = _with(downmix.mixed_pool2d, torch.tensor(0.5, device=DEVICE), *window)
        s3 = partial(downmix.s3_pool2d, kernel_size=kernel)
        mean, draw = stochastic_pool._stochastic_mean, stochastic_pool._stochastic_pool
        rows: list[tuple[str, list[Tensor], Callable[..., Tensor], Callable[..., Tensor], dict[str, Any]]] = [
            ("lip_pool2d", [x, logits], _with(downmix.lip_pool2d, *window), _with(lip_pool._reference, *constants), {}),
            (
                "power_avg_pool2d",
                [x],
                _with(downmix.power_avg_pool2d, *window),
                _with(power_pool._reference, *constants, 2.0),
                lp,
            ),
            # Without the check for negative values and the random numbers.
            ("stochastic_mean2d", [counts], _with(mean, *constants), _with(mean.reference, *constants), {}),
            (
                "stochastic_pool2d",
                [counts],
                _with(draw, draws, *constants),
                _with(draw.reference, draws, *constants),
                {},
            ),
            ("mixed_pool2d", [x], mixed, mixed, {}),
            *([] if padding else [("s3_pool2d", [x], s3, s3, {})]),
        ]
        for (op, leaves, ours, reference, others), (layout, memory_format) in product(rows, LAYOUTS.items()):
            torchs = {"max_pool": _first(F.max_pool2d, *window), "avg_pool": _first(F.avg_pool2d, *window)}
            leaves = [leaf.contiguous(memory_format=memory_format) for leaf in leaves]
            yield Case(op, shape, layout, leaves, ours, reference, torchs | others, compiled=DEVICE.type == "cpu")


def _with(function: Callable[..., Tensor], *constants: Any) -> Callable[..., Tensor]:
    """The function of tensors that is left once ``constants`` follow them."""
    return lambda *tensors: function(*tensors, *constants)


def _first(function: Callable[..., Tensor], *constants: Any) -> Callable[..., Tensor]:
    """The same, of the first tensor alone."""
    return lambda x, *_: function(x, *constants)


def cases(only: str, batches: Sequence[int]) -> Iterator[Case]:
    makers = (
        *(pix_cases(batches), layer_cases(), pool_cases(BATCH), other_pool_cases(BATCH), scaling_cases()),
        *((pool_cases(BATCH, torch.bfloat16),) if DEVICE.type == "cuda" else ()),
    )
    return (case for made in makers for case in made if only in case.op)
