"""What every pooling operator shares: how windows are asked for, checked, and laid out for a reference."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._define import check_floating, compute_dtype
from ._watching import exporting

Size = int | Sequence[int]
_MOST_PARTS = 32  # more take torch.compile too long


def read_window(
    n: int, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Checks a map of ``n`` spatial dimensions and the arguments of ``nn.MaxPool``.

    Returns:
        kernel_size, stride, padding and dilation as lists of ``n`` integers, and ceil_mode.

    Raises:
        TypeError, ValueError: in a sentence.
    """
    check_map(n, x)
    kernel_size = read_sizes("kernel_size", kernel_size, n, least=1)
    stride = kernel_size if stride is None else read_sizes("stride", stride, n, least=1)
    padding = read_sizes("padding", padding, n, least=0)
    dilation = read_sizes("dilation", dilation, n, least=1)
    for k, p, d in zip(kernel_size, padding, dilation, strict=True):
        if p > ((k - 1) * d + 1) // 2:
            raise ValueError(
                f"padding may be at most half of the window, (dilation · (kernel_size − 1) + 1) / 2, "
                f"got padding={p} for kernel_size={k}, dilation={d}"
            )
    # Each by itself: min() would compare two sizes, which a graph of any size would then be bound to.
    if any(out < 1 for out in output_sizes(x.shape[-n:], kernel_size, stride, padding, dilation, ceil_mode)):
        raise ValueError(
            f"a window of kernel_size={kernel_size}, dilation={dilation} does not fit a map of {list(x.shape[-n:])} "
            f"with padding={padding}; use a smaller window or a larger map"
        )
    return kernel_size, stride, padding, dilation, bool(ceil_mode)


def call_batched(n: int, operator: Callable[..., Tensor], tensors: Sequence[Tensor], *constants: Any) -> Tensor:
    """Calls an operator on maps of ``n`` spatial dimensions that may lack the batch dimension."""
    if tensors[0].dim() == n + 2:
        return operator(*tensors, *constants)
    return operator(*(tensor.unsqueeze(0) for tensor in tensors), *constants).squeeze(0)


def gather_windows(
    x: Tensor,
    fill: float,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """The K values of each window, ``fill`` where it reaches beyond the map: [B, C, *space] to [K, B, C, *out].

    Places in the window come first: arithmetic then runs along maps, not along a handful of values.
    """
    x = _padded(x, fill, kernel_size, stride, padding, dilation, ceil_mode)
    if exporting() and all(isinstance(k, int) for k in kernel_size) and math.prod(kernel_size) <= _MOST_PARTS:
        return torch.cat(_places(x, kernel_size, stride, dilation))  # runtimes are slow to transpose windows
    for i, (k, s, d) in enumerate(zip(kernel_size, stride, dilation, strict=True)):
        if isinstance(k, torch.SymInt) and k == x.shape[2 + i]:  # a whole map of any size, which unfold would fix
            x = x.movedim(2 + i, -1).unsqueeze(2 + i)
        else:
            x = x.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d]
    return places_first(x, len(kernel_size))


def part_windows(x: Tensor, fill: float, *window: Any) -> list[Tensor]:
    """The same in parts: one, or where torch.compile then joins all that is done to them, K of a place each."""
    kernel_size, stride, _, dilation, _ = window
    if exporting() or not torch.compiler.is_compiling() or math.prod(kernel_size) > _MOST_PARTS:
        return [gather_windows(x, fill, *window)]
    return _places(_padded(x, fill, *window), kernel_size, stride, dilation)


def _places(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[Tensor]:
    """The value of each window at each of its places, K of [1, B, C, *out], from a padded map."""
    parts = []
    for place in itertools.product(*map(range, kernel_size)):
        # Up to where the last window that fits may have this place: by no size, which a graph would be bound to.
        steps = [
            slice(i * d, (i - k + 1) * d or None, s)
            for i, k, s, d in zip(place, kernel_size, stride, dilation, strict=True)
        ]
        parts.append(x[:, :, *steps].unsqueeze(0))
    return parts


def _padded(x: Tensor, fill: float, *window: Any) -> Tensor:
    """The map with what its windows may reach of its surroundings.

    What is added does not depend on the map's size, so that an exported graph holds for others too.
    """
    kernel_size, stride, padding, dilation, ceil_mode = window
    pads: list[int] = []
    for k, s, p, d in zip(kernel_size, stride, padding, dilation, strict=True):
        pads = [p, min(p + s - 1, (k - 1) * d) if ceil_mode else p, *pads]
    return F.pad(x, pads, value=fill) if any(pads) else x


def count_values(x: Tensor, *window: Any) -> Tensor:
    """How many values of the map each window holds, [1, 1, *out] in x's dtype of arithmetic; 1 where it holds none."""
    ones = x.new_ones(1, 1, *x.shape[2:], dtype=compute_dtype(x))
    return gather_windows(ones, 0.0, *window).sum(0).clamp(min=1.0)


def places_first(windows: Tensor, n: int) -> Tensor:
    """[B, C, *out, *kernel], of ``n`` dimensions each, to [K, B, C, *out]."""
    if exporting():
        # On torch 2.11 a view that merges permuted dimensions leaves a guard on the batch size; this copies twice.
        return windows.flatten(-n).movedim(windows.dim() - n, 0)  # the old ONNX exporter knows no -1
    return windows.movedim(list(range(-n, 0)), list(range(n))).contiguous().flatten(0, n - 1)


def flop_formula(operations: Callable[..., dict[str, int]], tensors: int = 1) -> Callable[..., int]:
    """What an operator on windows tells torch's counter: the sum of all kinds of ``operations``, which take the shape
    of the output and the ``kernel_size`` that follows so many tensors."""
    return lambda *args, out_shape, **kwargs: sum(operations(out_shape, args[tensors]).values())


def output_sizes(
    sizes: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Sizes of the output, by the rule of ``nn.MaxPool``: no window of ceil_mode starts in the right padding."""
    out = []
    for size, k, s, p, d in zip(sizes, kernel_size, stride, padding, dilation, strict=True):
        beyond = p - d * (k - 1) - 1  # how far behind the map a window may start
        out.append((size + p + (min(beyond + s - 1, -1) if ceil_mode else beyond)) // s + 1)
    return out


def check_map(n: int, x: Tensor) -> None:
    """Raises unless ``x`` is a floating-point [B, C, *space] or [C, *space] of ``n`` spatial dimensions."""
    check_floating("x", x)
    if x.dim() not in (n + 1, n + 2):
        space = ", ".join("DHW"[3 - n :]) if n > 1 else "L"
        raise ValueError(f"x must be [B, C, {space}] or [C, {space}], got {list(x.shape)}")


def read_sizes(argument: str, value: Any, n: int, least: int) -> list[int]:
    """A size as a list of ``n`` integers of ``least`` or more; raises a sentence where it is none."""
    if type(value) is int and value >= least:  # the usual case; all that follows takes longer than some kernels
        return [value] * n
    values = [value] * n if isinstance(value, numbers.Integral) else value
    if isinstance(value, bool) or not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{argument} must be an integer or {n} of them, got {value!r}")
    values = list(values) * n if len(values) == 1 else list(values)
    if any(isinstance(v, bool) or not isinstance(v, numbers.Integral | torch.SymInt) for v in values):
        raise TypeError(f"{argument} must be an integer or {n} of them, got {value!r}")
    if len(values) != n or any(v < least for v in values):
        raise ValueError(f"{argument} must be an integer of {least} or more, or {n} of them, got {value!r}")
    return [v if isinstance(v, torch.SymInt) else int(v) for v in values]  # pyright: ignore[reportReturnType]
