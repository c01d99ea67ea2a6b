"""Runs a kernel in torch's own threads.

A kernel is a C function of one address: there lie the number of the next task, how many there are, how many a thread
takes at once, and the kernel's own arguments, all as 64-bit integers. Threads take tasks until none is left, so a late
or slow one holds up nobody, and no result depends on who did what.

Numba's own parallel loops would bring a second OpenMP library, with threads beside torch's, and its dispatcher takes
longer over a call than a small kernel runs.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import os
import struct
import warnings
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types

from ._common import intrinsic, memory

INT64 = np.empty(0, np.int64)
_HEADER = 3  # next task, tasks, tasks at once
_SERIAL_ELEMENTS = 1 << 15  # fewer than this are done before a second thread is awake
_SHARES = 8  # a thread takes this part of its fair share at once
_LOADED_ONLY = getattr(os, "RTLD_NOLOAD", 0)


def kernel(name: str = "", **functions: Any) -> Callable[[Any], Any]:
    """Makes a kernel of a function of one address, compiled here and kept on the disk.

    It may call ``functions`` by the names they have here. They become global names of its own, for compiled functions
    in a closure would change the key of Numba's cache in every process; ``name`` is what keeps kernels of one text, but
    of other functions, apart on the disk.
    """

    def make(run: Any) -> Any:
        own = FunctionType(run.__code__, {**run.__globals__, **functions}, run.__name__, None, run.__closure__)
        own.__qualname__ = f"{run.__qualname__}.{name}.{_sources()}"
        # The compiler makes millions of objects; to look through them for garbage takes a fifth of its time.
        paused = gc.isenabled()
        gc.disable()
        try:
            return _compile(own)
        finally:
            if paused:
                gc.enable()

    return make


def _compile(run: Any) -> Any:
    options: Any = {"error_model": "numpy"}
    try:
        return numba.cfunc("void(intp)", cache=True, **options)(run)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        warnings.warn(
            "compiled kernels can't be kept, as neither downmix's own folder nor the user's cache is writable; "
            "set NUMBA_CACHE_DIR to a folder that is, or every process compiles them anew",
            stacklevel=1,
        )
        return numba.cfunc("void(intp)", **options)(run)


@functools.cache
def _sources() -> str:
    """What is in this folder, as a word: Numba itself looks only at the file that a kernel stands in, and would go on
    with code made of older helpers."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def launch(kernel: Any, tasks: int, elements: int, *arguments: int) -> None:
    """Runs all tasks, in as many threads as torch uses, or in one where ``elements`` are too few to be worth more."""
    threads = min(torch.get_num_threads(), tasks) if elements >= _SERIAL_ELEMENTS else 1
    # The array must live until the call is over: `at` alone does not hold it.
    values = array("q", (0, tasks, max(1, tasks // (threads * _SHARES)), *arguments))
    at, _ = values.buffer_info()
    if threads == 1:
        kernel.ctypes(at)
    else:
        _parallel()(kernel, at, threads)
    if values[0] < tasks:  # an error in a compiled function ends here unseen
        raise MemoryError("a kernel found no memory to work in; use a smaller window, or use_backend('reference')")


@functools.cache
def _parallel() -> Callable[[Any, int, int], object]:
    """Calls a kernel in each of some threads: torch's own, or of a pool where torch has no OpenMP of the GNU kind."""
    package = Path(torch.__file__).parent
    brought = [path for folder in ("lib", "../torch.libs") for path in package.glob(f"{folder}/lib*omp*")]
    for name in (*map(str, sorted(brought)), "libgomp.so.1", "libiomp5.so"):
        try:
            # Only libraries that torch has already loaded: another one would bring its own threads.
            start = ctypes.CDLL(name, mode=ctypes.DEFAULT_MODE | _LOADED_ONLY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        start.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_uint, ctypes.c_uint]
        start.restype = None
        return lambda kernel, at, threads: start(kernel.address, at, threads, 0)
    pool = ThreadPoolExecutor(thread_name_prefix="downmix")
    return lambda kernel, at, threads: list(pool.map(kernel.ctypes, [at] * threads))


@functools.lru_cache
def bits(number: float) -> int:
    """A float64 as the integer that holds it; `number_from` is the way back."""
    return struct.unpack("q", struct.pack("d", number))[0]


@intrinsic
def number_from(typingctx, bits):
    """The float64 that an integer holds."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic(prefer_literal=True)
def arguments(typingctx, at, count):
    """The first ``count`` of a kernel's own arguments, as a tuple."""
    numbers = count.literal_value

    def codegen(context, builder, signature, args):
        first = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        found = [builder.load(builder.gep(first, [ir.IntType(32)(_HEADER + n)])) for n in range(numbers)]
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.int64, numbers)(types.intp, count), codegen


@njit
def tasks(at):
    """The tasks this thread is to do, one after another."""
    total, share = memory(at, INT64)[1], memory(at, INT64)[2]
    first = _take(at, share)
    while first < total:
        for task in range(first, min(first + share, total)):  # noqa: UP028, Numba knows no `yield from`
            yield task
        first = _take(at, share)


@intrinsic
def _take(typingctx, at, share):
    def codegen(context, builder, signature, args):
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, args[1], "monotonic")

    return types.int64(types.intp, types.int64), codegen
