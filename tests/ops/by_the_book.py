"""Pools computed as a reader of the specification would, a window at a time."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def of_all(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def pool_by_the_book(
    reduce: Callable[..., float],
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    others: tuple[Tensor, ...] = (),
) -> Tensor:
    """``reduce`` of the values of the map, and of ``others`` like it, in each window; sizes are max pooling's."""
    n = x.dim() - 2
    stride = kernel_size if stride is None else stride
    max_pool = getattr(F, f"max_pool{n}d")
    y = torch.zeros(max_pool(x, kernel_size, stride, padding, dilation, ceil_mode).shape, dtype=torch.float64)
    k, s, p, d = (of_all(value, n) for value in (kernel_size, stride, padding, dilation))
    for b, c, *place in (index.tolist() for index in torch.ones_like(y).nonzero()):
        inside = []
        for element in itertools.product(*(range(size) for size in k)):
            at = [place[i] * s[i] - p[i] + element[i] * d[i] for i in range(n)]
            if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
                inside.append((b, c, *at))
        y[(b, c, *place)] = reduce(*([tensor[at].item() for at in inside] for tensor in (x, *others)))
    return y
