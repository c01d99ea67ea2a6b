"""One call for every spatial pool by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..ops._define import check_choice
from ..ops._windows import Size, read_sizes
from .lip_pool import BottleneckLogit, LIPPool1d, LIPPool2d, LIPPool3d, SimplifiedLogit
from .mixed_pool import MixedPool1d, MixedPool2d, MixedPool3d
from .power_pool import PowerAvgPool1d, PowerAvgPool2d, PowerAvgPool3d
from .s3_pool import S3Pool1d, S3Pool2d, S3Pool3d
from .soft_pool import SoftPool1d, SoftPool2d, SoftPool3d
from .stochastic_pool import StochasticPool1d, StochasticPool2d, StochasticPool3d

# The modules for one, two and three dimensions.
POOLS: dict[str, tuple[Any, Any, Any]] = {
    "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    "avg": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    "lp": (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
    "soft": (SoftPool1d, SoftPool2d, SoftPool3d),
    "power": (PowerAvgPool1d, PowerAvgPool2d, PowerAvgPool3d),
    "stochastic": (StochasticPool1d, StochasticPool2d, StochasticPool3d),
    "s3": (S3Pool1d, S3Pool2d, S3Pool3d),
    "lip": (LIPPool1d, LIPPool2d, LIPPool3d),
    "mixed": (MixedPool1d, MixedPool2d, MixedPool3d),
}
_LOGITS = {"simplified": SimplifiedLogit, "bottleneck": BottleneckLogit}


def create_pool(
    name: str,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    dims: int = 2,
    **options: Any,
) -> nn.Module:
    """The pool of that name, with the window of ``nn.MaxPool``'s arguments.

    Args:
        name (str): ``"max"``, ``"avg"`` and ``"lp"`` for torch's own, ``"soft"`` (:class:`SoftPool2d`), ``"power"``
            (:class:`PowerAvgPool2d`), ``"stochastic"`` (:class:`StochasticPool2d`), ``"s3"`` (:class:`S3Pool2d`),
            ``"lip"`` (:class:`LIPPool2d`) or ``"mixed"`` (:class:`MixedPool2d`). Padding takes no part in ``"avg"``, as
            in no other pool (torch's default is ``count_include_pad=True``); ``"lp"`` has ``norm_type=2``.
        kernel_size, stride, padding, dilation, ceil_mode: as those of ``nn.MaxPool``.
        dims (int): spatial dimensions, 1, 2 or 3.
        **options: what that class takes, such as ``norm_type``. For ``"lip"``, ``logits`` may also be ``"simplified"``
            (the default) or ``"bottleneck"``, both of which need ``in_channels``.

    Raises:
        ValueError: if the name is unknown, or its class refuses the numbers.
        TypeError: if its class knows no such option.

    Example:
        >>> create_pool("avg", 3, stride=2, padding=1)
        AvgPool2d(kernel_size=3, stride=2, padding=1)
        >>> create_pool("lip", 2, in_channels=64).logits[0]
        Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    check_choice("pool", name, tuple(POOLS))
    if dims not in (1, 2, 3):
        raise ValueError(f"dims must be 1, 2 or 3, the spatial dimensions of the map, got {dims!r}")
    kind = POOLS[name][dims - 1]
    if name == "avg":
        _refuse(name, dilation=dilation)
        return kind(kernel_size, stride, padding, ceil_mode, **{"count_include_pad": False} | options)
    if name == "lp":
        _refuse(name, dilation=dilation, padding=padding)
        if dims == 1:  # torch's average and max pools over one dimension take a tuple of one, this one fails with it
            kernel_size = read_sizes("kernel_size", kernel_size, 1, least=1)[0]
            stride = None if stride is None else read_sizes("stride", stride, 1, least=1)[0]
        return kind(options.pop("norm_type", 2), kernel_size, stride, ceil_mode, **options)
    if name == "lip":
        options["logits"] = _logits(options.get("logits", "simplified"), options.pop("in_channels", None), dims)
    return kind(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode, **options)


def _logits(logits: str | nn.Module, in_channels: int | None, dims: int) -> nn.Module:
    if isinstance(logits, nn.Module):
        if in_channels is not None:
            raise ValueError("lip takes in_channels for the logits it makes; leave it out where logits is a module")
        return logits
    check_choice("logits", logits, tuple(_LOGITS))
    if in_channels is None:
        raise ValueError(f"lip with logits={logits!r} has weights for each channel: pass in_channels")
    return _LOGITS[logits](in_channels, dims=dims)


def _refuse(name: str, **sizes: Size) -> None:
    """torch's pools don't all have every argument of its max pool."""
    for argument, value in sizes.items():
        plain = 1 if argument == "dilation" else 0
        if any(size != plain for size in (value if isinstance(value, tuple | list) else [value])):
            raise ValueError(f"torch's {name} pool has no {argument}, got {value}; use {plain} or another pool")
