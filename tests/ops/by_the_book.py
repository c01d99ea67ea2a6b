"""Pools computed as a reader of the specification would, a window at a time."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def window_of(
    n: int, kernel_size: Any = 2, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Any, ...]:
    """What a pool's function hands on of these arguments to its operator: each size as a list of ``n``."""
    sizes = kernel_size, kernel_size if stride is None else stride, padding, dilation
    return *([size] * n if isinstance(size, int) else list(size) for size in sizes), ceil_mode


def pool_by_the_book(
    reduce: Callable[..., float], x: Tensor, *window: Any, others: tuple[Tensor, ...] = (), **options: Any
) -> Tensor:
    """``reduce`` of the values of the map, and of ``others`` like it, in each window; sizes are max pooling's."""
    n = x.dim() - 2
    k, s, p, d, ceil_mode = window_of(n, *window, **options)
    y = torch.zeros(getattr(F, f"max_pool{n}d")(x, k, s, p, d, ceil_mode).shape, dtype=torch.float64)
    for b, c, *place in (index.tolist() for index in torch.ones_like(y).nonzero()):
        inside = []
        for element in itertools.product(*(range(size) for size in k)):
            at = [place[i] * s[i] - p[i] + element[i] * d[i] for i in range(n)]
            if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
                inside.append((b, c, *at))
        y[(b, c, *place)] = reduce(*([tensor[at].item() for at in inside] for tensor in (x, *others)))
    return y
