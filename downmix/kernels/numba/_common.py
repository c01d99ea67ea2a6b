# Numba's intrinsics take a typing context that callers don't pass.
# pyright: reportCallIssue=false
"""What the CPU kernels share: memory as flat arrays, half precision, an exponential that vectorises, threads."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload

# Beside torch's OpenMP threads the omp layer does best; it is only preferred, and a user's own choice stays.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

# A kernel gets a tensor as the address of its first element and one of these for its type: to make a NumPy array of a
# tensor takes longer than a small kernel. Numba knows no half precision on the CPU, so float16 goes as int16 and
# bfloat16 as uint16, see `widen` and `narrow`.
ELEMENT = {
    torch.float16: np.empty(0, np.int16),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
}
# For each, an integer that holds two of them; float64 has none, and goes one by one.
PAIR = {
    torch.float16: np.empty(0, np.uint32),
    torch.bfloat16: np.empty(0, np.uint32),
    torch.float32: np.empty(0, np.uint64),
    torch.float64: np.empty(0, np.float64),
}
# Fewer elements than this are done before a second thread is awake.
_SERIAL_ELEMENTS = 1 << 15


def set_threads(elements: int) -> None:
    """Makes the next kernel use as many threads as torch does, or one where the work is not worth more."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads if elements >= _SERIAL_ELEMENTS else 1)


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), codegen


@njit(inline="always")
def memory(address, element):
    """All memory from ``address`` on as a flat array of ``element``'s type; strides lead through it.

    A kernel must read from what it wrote after its last loop, by returning an element: Numba believes the array to be
    its own, and drops writes to an array that nobody reads.
    """
    return carray(_pointer(address), (1 << 58,), element.dtype)


@intrinsic
def _half_to_float(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), codegen


@intrinsic
def _float_to_half(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen


@intrinsic
def _bits(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def _float_from_bits(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


def widen(value: Any) -> Any:
    """A stored value as the number to compute with: float32 for half precision, itself otherwise."""
    raise NotImplementedError("only for compiled code")


def first_half(value: Any, element: Any) -> Any:
    """The first of the two values that an integer of `PAIR` holds, on a little-endian machine."""
    raise NotImplementedError("only for compiled code")


def narrow(value: Any, like: Any) -> Any:
    """A computed number as it is stored in an array of ``like``'s dtype, rounded to nearest even."""
    raise NotImplementedError("only for compiled code")


def exp(value: Any) -> Any:
    """For a value of at most 0: that value, cut off where its exponential vanishes, and the exponential.

    In float32 a polynomial, which LLVM vectorises where it calls a library for np.exp.
    """
    raise NotImplementedError("only for compiled code")


@njit(fastmath={"reassoc", "contract"})
def sum_of(values):
    """The sum in float64; its order is the compiler's, so that it vectorises."""
    total = 0.0
    for value in values:
        total += np.float64(value)
    return total


@overload(widen)
def _widen(value):
    if value == types.int16:
        return lambda value: _half_to_float(value)
    if value == types.uint16:
        return lambda value: _float_from_bits(types.uint32(value) << types.uint32(16))
    return lambda value: value


@overload(first_half)
def _first_half(value, element):
    if element.dtype == types.int16:
        return lambda value, element: types.int16(value)
    if element.dtype == types.uint16:
        return lambda value, element: types.uint16(value)
    if element.dtype == types.float32:
        return lambda value, element: _float_from_bits(types.uint32(value))
    return lambda value, element: value


@overload(narrow)
def _narrow(value, like):
    if like.dtype == types.int16:
        return lambda value, like: _float_to_half(types.float32(value))
    if like.dtype == types.uint16:

        def to_bfloat16(value, like):
            bits = _bits(types.float32(value))
            rounded = (bits + types.uint32(0x7FFF) + ((bits >> types.uint32(16)) & types.uint32(1))) >> types.uint32(16)
            is_nan = (bits & types.uint32(0x7FFFFFFF)) > types.uint32(0x7F800000)
            return types.uint16(types.uint32(0x7FC0) if is_nan else rounded)

        return to_bfloat16
    return lambda value, like: value


@overload(exp, jit_options={"fastmath": {"contract"}})
def _exp(value):
    if value == types.float64:

        def exp_float64(value):
            cut = -745.0 if value < -745.0 else value
            return cut, (0.0 if value < -745.0 else np.exp(cut))

        return exp_float64

    def exp_float32(value):
        # 2^n · e^f with |f| ≤ ln 2 / 2; adding 1.5 · 2²³ rounds to the integer n and leaves it in the low bits.
        cut = types.float32(-87.0) if value < types.float32(-87.0) else value
        shifted = cut * types.float32(1.4426950408889634) + types.float32(12582912.0)
        n = shifted - types.float32(12582912.0)
        f = cut - n * types.float32(0.693359375)
        f = f + n * types.float32(2.12194440e-4)
        # Taylor, of degree 7: its error at ln 2 / 2 is below float32's rounding.
        y = types.float32(1 / 5040)
        y = y * f + types.float32(1 / 720)
        y = y * f + types.float32(1 / 120)
        y = y * f + types.float32(1 / 24)
        y = y * f + types.float32(1 / 6)
        y = y * f + types.float32(0.5)
        y = y * f + types.float32(1.0)
        y = y * f + types.float32(1.0)
        scale = _float_from_bits((_bits(shifted) + types.uint32(127)) << types.uint32(23))
        return cut, (types.float32(0.0) if value < types.float32(-87.0) else y * scale)

    return exp_float32
