"""Runs tests on the CPU with what Triton compiles for a GPU: python -m tests.kernels.run_ptx [arguments of pytest].

Ends with what each kernel did: instructions of warps, bytes that threads asked memory for, and how many times as many
there are in the sectors that hold them, which is what goes through a GPU's first cache.
"""

import collections
import os
import sys
from typing import Any

import pytest
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver

from downmix.kernels.triton import _common

from .launch_triton import Driver as _Driver
from .ptx.machine import launch

counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
places: list[tuple[int, int]] = []


class Launcher:
    def __init__(self, source: Any, metadata: Any):
        self.types = source.signature.values()
        self.shared = metadata.shared

    def __call__(self, *args: Any) -> None:
        grid, kernel, arguments = args[:3], args[4], args[9:]
        values: list[Any] = []
        for kind, value in zip(self.types, arguments, strict=True):
            _flatten(kind, value, values)
        # Triton adds two buffers of its own, which our kernels have no use for.
        counts[kernel.name] += launch(kernel.asm["ptx"], grid, [*values, 0, 0], self.shared, places)


def _flatten(kind: Any, value: Any, values: list[Any]) -> None:
    if isinstance(kind, tuple):
        for part, item in zip(kind, value, strict=True):
            _flatten(part, item, values)
    elif kind != "constexpr":
        values.append(value.data_ptr() if isinstance(value, Tensor) else value)


class Driver(_Driver):
    launcher_cls = Launcher


def _with_places(launch: Any, *tensors: Tensor, here: Any = _common.Launch.here) -> None:
    sizes = [sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1 for t in tensors]
    places[:] = [
        (t.data_ptr(), t.data_ptr() + size * t.element_size())
        for t, size in zip(tensors, sizes, strict=True)
        if t.numel()
    ]
    here(launch, *tensors)


def _with_code(kernel: Any, init_handles: Any = CompiledKernel._init_handles) -> None:
    init_handles(kernel)
    kernel.function = kernel  # what the launcher gets


class NoInterpreter:
    """tests/conftest.py asks for it where there is no GPU."""

    def pytest_configure(self) -> None:
        os.environ.pop("TRITON_INTERPRET", None)


def main() -> int:
    if "TRITON_INTERPRET" in os.environ:  # which Triton has read by now
        sys.exit("run_ptx: unset TRITON_INTERPRET, with which Triton compiles nothing")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tensors have to lie where NumPy reads them
    driver.set_active(Driver())
    CompiledKernel._init_handles = _with_code
    _common.Launch.here = _with_places
    result = pytest.main(sys.argv[1:], plugins=[NoInterpreter()])
    for name, count in sorted(counts.items()):
        asked, moved = count.pop("bytes"), 32 * count.pop("sectors")
        print(f"{name}: {count.total():,} instructions, {asked:,} bytes, {moved / asked:.2f} times as many in sectors")
    return int(result)


if __name__ == "__main__":
    sys.exit(main())
