# pyright: reportCallIssue=false
"""What the Triton kernels share: arithmetic that follows torch's rules, and the layouts that decide a tile's shape."""

import contextlib
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import memory_format

# 16 bytes a thread and load in 4 warps: the widest load, and small enough programs for 16 of them to share one of
# H200's 132 multiprocessors, so that some load while others compute.
THREADS = 128
LOAD_BYTES = 16
# Fused multiply-adds round once, so are nearer the truth; said here because Triton's default is about to change.
OPTIONS = {"num_warps": THREADS // 32, "enable_fp_fusion": True}
TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def larger(a, b):
    """The maximum, or NaN where either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def divide(a, b):
    """a / b, rounded as torch rounds it; Triton's own float32 division is approximate."""
    return tl.div_rn(a, b.to(tl.float32)) if a.dtype == tl.float32 else a / b


@triton.jit
def aligned(value, ALIGN: tl.constexpr):
    """``value``, which ALIGN divides; wide loads need the compiler to know so, of offsets and of limits in masks."""
    return value // ALIGN * ALIGN


def power_of_two(size: int, at_most: int) -> int:
    """The smallest power of two that covers ``size``, but no more than ``at_most``, which is one too."""
    return min(triton.next_power_of_2(size), at_most)


def empty_output(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for an output, laid out as ``contiguous(memory_format=memory_format(x))`` would lay it out."""
    y = torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
    layout = memory_format(x)
    if y.is_contiguous(memory_format=layout):  # as with one channel, whose strides then say contiguous
        return y
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def alignment(*values: int) -> int:
    """The largest power of two up to 16 that divides all values: what the compiler may take for granted."""
    return math.gcd(16, *values)


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches within go to the device of ``x``, which need not be the current one."""
    return torch.cuda.device_of(x) if x.is_cuda else contextlib.nullcontext()
