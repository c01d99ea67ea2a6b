# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
"""What the Triton kernels share: arithmetic that follows torch's rules, and the layouts that decide a tile's shape."""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.knobs import runtime
from triton.runtime import driver

from ...ops._define import DTYPES, memory_format
from .._layouts import Layout, blank, layout, remembered

# 16 bytes a thread and load in 4 warps: the widest load, and small enough programs for 16 of them to share one of
# H200's 132 multiprocessors, so that some load while others compute.
THREADS = 128
LOAD_BYTES = 16
# Fused multiply-adds round once, so are nearer the truth; said here because Triton's default is about to change.
OPTIONS = {"num_warps": THREADS // 32, "enable_fp_fusion": True}
TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
# Programs that add up: enough to keep all of an H200 busy, but what they leave has to be added up too.
_SUMMING = 4096
_HERE = contextlib.nullcontext()


class Launch:
    """A kernel with all that it is launched with, but for the tensors in front.

    It keeps what Triton has compiled: to find that again takes Triton longer than all else that a launch does. So its
    tensors have the same dtypes each time.

    Args:
        kernel: what ``triton.jit`` gives.
        programs: how many there are, in one dimension or in three.
        arguments: those between the tensors and the constants.
        constants: the compile-time arguments.
    """

    def __init__(
        self, kernel: Any, programs: int | tuple[int, int, int], arguments: Sequence[Any], constants: dict[str, Any]
    ):
        self.grid = programs if isinstance(programs, tuple) else (programs, 1, 1)
        self.kernel, self.arguments, self.constants = kernel, arguments, constants
        self.all = (*arguments, *(constants[name] for name in kernel.arg_names if name in constants))
        self.compiled: dict[tuple[int | bool, ...], Any] = {}

    def __call__(self, *tensors: Tensor) -> None:
        with on_device_of(tensors[0]):
            self.here(*tensors)

    def here(self, *tensors: Tensor) -> None:
        """The same where the tensors' device is the current one."""
        # Triton compiles anew for each device, and for memory that wide loads must not take for aligned.
        device, addresses = tensors[0].get_device(), [tensor.data_ptr() for tensor in tensors]
        key = (device, *[address % LOAD_BYTES == 0 for address in addresses])
        compiled = self.compiled.get(key)
        if compiled is None:
            if kernel := self.kernel[self.grid](*tensors, *self.arguments, **self.constants, **OPTIONS):
                self.compiled[key] = kernel, kernel.run, kernel.function, kernel.packed_metadata
            return  # the interpreter gives none
        kernel, run, function, metadata = compiled
        # Of a tensor, the launcher would ask the driver whether its memory is on the GPU.
        arguments, stream = (*addresses, *self.all), driver.active.get_current_stream(device)
        if runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:  # of Triton's profiler
            kernel[self.grid](*arguments, stream=stream)
        else:  # what that does, in half the time
            run(*self.grid, stream, function, metadata, None, None, None, *arguments)


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


def why_not(**tensors: Tensor) -> str | None:
    """Why Triton can't compute with these tensors, or None: its dtypes and its GPUs are all that limits a kernel."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            return f"the kernel takes float16, bfloat16, float32 and float64, and {name} is {tensor.dtype}"
        if tensor.is_cuda and (reason := too_old(tensor.device)):
            return reason
    return None


@functools.cache
def too_old(device: torch.device) -> str | None:
    if torch.version.hip or (capability := torch.cuda.get_device_capability(device)) >= (7, 0):
        return None
    return f"Triton needs a GPU of compute capability 7.0 or more, and {device} has {'.'.join(map(str, capability))}"


def shared_out(s_tiles: int, programs: int) -> tuple[int, int]:
    """The parts that sums over positions are left in, and the tiles of each, where one part takes ``programs``."""
    tiles = triton.cdiv(s_tiles, min(s_tiles, triton.cdiv(_SUMMING, programs)))
    return triton.cdiv(s_tiles, tiles), tiles


def power_of_two(size: int, at_most: int) -> int:
    """The smallest power of two that covers ``size``, but no more than ``at_most``, which is one too."""
    return min(triton.next_power_of_2(size), at_most)


def empty_output(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for an output, laid out as ``contiguous(memory_format=memory_format(x))`` would lay it out."""
    return torch.empty_strided(shape, _strides(layout(x), shape), dtype=dtype or x.dtype, device=x.device)


@remembered
def _strides(x: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    y = torch.empty(shape, device="meta")
    return y.contiguous(memory_format=memory_format(blank(x))).stride()  # itself with one channel, say


def alignment(*values: int) -> int:
    """The largest power of two up to 16 that divides all values: what the compiler may take for granted."""
    return math.gcd(16, *values)


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches within go to the device of ``x``, which need not be the current one."""
    return torch.cuda.device_of(x) if x.is_cuda and x.get_device() != torch.cuda.current_device() else _HERE
