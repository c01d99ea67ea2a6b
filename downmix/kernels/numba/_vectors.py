"""Vectors as values inside kernels: 64 bytes of float32 or float64 numbers, and masks of the lanes that take part.

LLVM vectorises a plain loop only where it can prove that no row overlaps another, which for a dozen rows with strides
known at run time it can't. So the kernels say what they mean: `load`, arithmetic, `choose`, `store`. LLVM splits a
vector where the machine's are shorter.
"""

from __future__ import annotations

import functools
import math
import operator
import struct
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, overload, register_model

from ._common import BYTES, intrinsic

FLOAT, DOUBLE, INT = ir.FloatType(), ir.DoubleType(), ir.IntType(32)
Value = Any  # llvmlite's values have no types that a checker could follow


class Vector(types.Type):
    """The type of a vector: ``number`` is float32, float64, or boolean for a mask."""

    def __init__(self, number: Any, lanes: int):
        self.number, self.lanes = number, lanes
        super().__init__(name=f"Vector({number}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector):
        super().__init__(manager, vector, llvm(vector))


def llvm(vector: Vector) -> ir.VectorType:
    return ir.VectorType({types.float32: FLOAT, types.float64: DOUBLE}.get(vector.number, ir.IntType(1)), vector.lanes)


def vector_of(number: Any) -> Vector:
    return Vector(number, BYTES * 8 // number.bitwidth)


def mask_of(vector: Vector) -> Vector:
    return Vector(types.boolean, vector.lanes)


def number_of(stored: Any) -> Any:
    """What a stored type is computed in; see `_common.ELEMENT` for how half precision is stored."""
    return types.float32 if stored in (types.int16, types.uint16) else stored


def spread_out(value: Value, lanes: int, builder: Any) -> Value:
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, INT(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT, lanes), [0] * lanes))


def all_set(lanes: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(1), lanes), [1] * lanes)


def shuffle(builder: Any, a: Value, b: Value, lanes: list[int]) -> Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(lanes)), lanes))


def call(builder: Any, name: str, result: ir.Type, *args: Value, **options: Any) -> Value:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args, **options)


def suffix(vector: ir.VectorType) -> str:
    kind = {FLOAT: "f32", DOUBLE: "f64", ir.IntType(16): "i16"}[vector.element]
    return f"v{vector.count}{kind}"


@intrinsic
def spread(typingctx, number):
    """A vector with the number in all its lanes."""
    vector = vector_of(number)

    def codegen(context, builder, signature, args):
        return spread_out(args[0], vector.lanes, builder)

    return vector(number), codegen


@intrinsic
def lanes_between(typingctx, like, low, high):
    """The mask of the lanes from ``low`` to before ``high``, for vectors of ``like``'s dtype; both may lie outside."""
    mask = mask_of(vector_of(like.dtype))

    def codegen(context, builder, signature, args):
        def bound(value: Value) -> Value:
            for end, sign in ((mask.lanes, ">"), (0, "<")):
                end = value.type(end)
                value = builder.select(builder.icmp_signed(sign, value, end), end, value)
            return spread_out(builder.trunc(value, INT), mask.lanes, builder)

        lanes = ir.Constant(ir.VectorType(INT, mask.lanes), list(range(mask.lanes)))
        low, high = bound(args[1]), bound(args[2])
        return builder.and_(builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high))

    return mask(like, low, high), codegen


@intrinsic
def all_lanes(typingctx, like):
    """The mask of all lanes of a vector of ``like``'s dtype. With it, a load is a plain load."""
    mask = mask_of(vector_of(like.dtype))

    def codegen(context, builder, signature, args):
        return all_set(mask.lanes)

    return mask(like), codegen


@intrinsic(prefer_literal=True)
def members_where(typingctx, winner, a, b, size):
    """A vector a member, ``size`` of them: ``a`` in the lanes where ``winner`` holds its place, else ``b``."""
    members = size.literal_value

    def codegen(context, builder, signature, args):
        winner, a, b, _ = args
        places = (ir.Constant(winner.type, [float(c)] * winner.type.count) for c in range(members))
        found = [builder.select(builder.fcmp_ordered("==", winner, place), a, b) for place in places]
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(a, members)(winner, a, b, size), codegen


@intrinsic
def choose(typingctx, mask, a, b):
    """Lane by lane ``a`` where the mask is set, else ``b``."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return a(mask, a, b), codegen


@intrinsic
def is_nan(typingctx, vector):
    """The mask of the lanes that hold no number."""

    def codegen(context, builder, signature, args):
        return builder.fcmp_unordered("uno", args[0], args[0])

    return mask_of(vector)(vector), codegen


@intrinsic
def larger(typingctx, top, value):
    """Lane by lane the larger, or ``top`` where one is NaN: one instruction on x86."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return top(top, value), codegen


@intrinsic
def beats(typingctx, value, top):
    """Where ``value`` is larger. A NaN beats all numbers, and of equals, or of NaNs, the first wins."""

    def codegen(context, builder, signature, args):
        value, top = args
        is_nan = builder.fcmp_unordered("uno", value, value)
        new = builder.and_(is_nan, builder.fcmp_ordered("ord", top, top))
        return builder.or_(builder.fcmp_ordered(">", value, top), new)

    return mask_of(value)(value, top), codegen


@intrinsic
def is_infinite(typingctx, vector):
    """The mask of the lanes that hold +∞ or −∞."""

    def codegen(context, builder, signature, args):
        infinity = ir.Constant(args[0].type, [math.inf] * vector.lanes)
        size = call(builder, f"llvm.fabs.{suffix(args[0].type)}", args[0].type, args[0])
        return builder.fcmp_ordered("==", size, infinity)

    return mask_of(vector)(vector), codegen


@intrinsic
def sqrt(typingctx, vector):
    def codegen(context, builder, signature, args):
        return call(builder, f"llvm.sqrt.{suffix(args[0].type)}", args[0].type, args[0])

    return vector(vector), codegen


@intrinsic(prefer_literal=True)
def exp(typingctx, vector, crowded):
    """For values of at most 0: those values, cut off where their exponentials vanish, and the exponentials.

    Unless a literal says that registers are ``crowded``, they hold the constants.
    """

    def codegen(context, builder, signature, args):
        if vector.number == types.float32:
            found = _exp_float32(builder, args[0], spread_constant if crowded.literal_value else held)
        else:
            found = _exp_float64(builder, args[0])
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(vector, 2)(vector, crowded), codegen


def spread_constant(builder: Any, kind: ir.VectorType, number: float) -> Value:
    return ir.Constant(kind, [number] * kind.count)


def held(builder: Any, kind: ir.VectorType, number: float) -> Value:
    """A float32 constant as a vector that is made once, where the kernel begins. LLVM would rather read constants again
    for each window, which takes a tenth of its time; what comes out of assembly, even of none, it can't know to be one.
    """
    bits = INT(struct.unpack("i", struct.pack("f", number))[0])
    with builder.goto_entry_block():
        unknown = builder.asm(ir.FunctionType(INT, [INT]), "", "=r,0", [bits], side_effect=False)
        return spread_out(builder.bitcast(unknown, FLOAT), kind.count, builder)


# Of all polynomials of degree 5 that are 1 at 0 the nearest to 2^f for |f| ≤ 1/2, by relative error: 9.1e-8. Highest
# power first.
_POWERS = (
    0.0013264727139960064,
    0.009671512639957249,
    0.05550733743470752,
    0.2402224208537672,
    0.6931469775989911,
    1.0,
)


def _exp_float32(builder: Any, value: Value, constant: Callable[..., Value]) -> tuple[Value, Value]:
    # 2^n · 2^f with |f| ≤ 1/2; adding 1.5 · 2²³ rounds to the integer n, and 127 more makes the low bits the exponent
    # of 2^n. From −88 on that is 0, so that the product is 0.
    number = functools.partial(constant, builder, value.type)
    least, inverse, shift = number(-88.0), number(1 / math.log(2)), number(12582912.0 + 127.0)
    cut = builder.select(builder.fcmp_ordered(">", least, value), least, value)  # a NaN stays
    shifted = _product_and_sum(builder, cut, inverse, shift)
    f = _product_and_sum(builder, cut, inverse, builder.fsub(shift, shifted))
    y = _polynomial(builder, f, [number(power) for power in _POWERS])
    whole = ir.VectorType(INT, value.type.count)
    scale = builder.shl(builder.bitcast(shifted, whole), ir.Constant(whole, [23] * whole.count))
    return cut, builder.fmul(y, builder.bitcast(scale, value.type))


def _polynomial(builder: Any, x: Value, coefficients: Sequence[Value]) -> Value:
    """Its value at x, the coefficient of the highest power first."""
    y, *others = coefficients
    for coefficient in others:
        y = _product_and_sum(builder, y, x, coefficient)
    return y


def _product_and_sum(builder: Any, a: Value, b: Value, c: Value) -> Value:
    """In one instruction where the machine has it."""
    return call(builder, f"llvm.fmuladd.{suffix(a.type)}", a.type, a, b, c)


def _exp_float64(builder: Any, value: Value) -> tuple[Value, Value]:
    least, zero = (spread_constant(builder, value.type, end) for end in (-745.0, 0.0))
    vanishes = builder.fcmp_ordered("<", value, least)
    cut = builder.select(vanishes, least, value)
    power = call(builder, f"llvm.exp.{suffix(value.type)}", value.type, cut)
    return cut, builder.select(vanishes, zero, power)


@intrinsic
def exp_of_calm(typingctx, vector):
    """The exponentials of values of at most 80 in size; of others it gives anything."""

    def codegen(context, builder, signature, args):
        if vector.number == types.float32:
            return _exp_of_calm_float32(builder, args[0])
        return call(builder, f"llvm.exp.{suffix(args[0].type)}", args[0].type, args[0])

    return vector(vector), codegen


def _exp_of_calm_float32(builder: Any, value: Value) -> Value:
    # e^r · 2^n with |r| ≤ ln 2 / 2. Float32's ln 2 is so near (1.9e-9) that one product leaves r exact enough.
    number = functools.partial(spread_constant, builder, value.type)
    shift, ln2 = number(12582912.0), math.log(2)
    shifted = _product_and_sum(builder, value, number(1 / ln2), shift)
    r = _product_and_sum(builder, builder.fsub(shifted, shift), number(-ln2), value)
    powers = [number(c / ln2**degree) for degree, c in zip((5, 4, 3, 2, 1, 0), _POWERS, strict=True)]
    y = _polynomial(builder, r, powers)
    whole = ir.VectorType(INT, value.type.count)
    n = builder.shl(builder.bitcast(shifted, whole), ir.Constant(whole, [23] * whole.count))
    return builder.bitcast(builder.add(builder.bitcast(y, whole), n), value.type)


@intrinsic
def farther(typingctx, size, value):
    """Lane by lane the larger of a size and that of a value; NaN is the largest of all."""

    def codegen(context, builder, signature, args):
        # As integers, the bits of numbers of one sign are in their order, and those of NaN come last.
        whole = ir.VectorType(ir.IntType(vector_bits), size.lanes)
        here = builder.bitcast(args[1], whole)
        here = builder.and_(here, ir.Constant(whole, [(1 << (vector_bits - 1)) - 1] * size.lanes))
        so_far = builder.bitcast(args[0], whole)
        largest = builder.select(builder.icmp_signed(">", here, so_far), here, so_far)
        return builder.bitcast(largest, args[0].type)

    vector_bits = size.number.bitwidth
    return size(size, value), codegen


@intrinsic
def any_beyond(typingctx, sizes, limit):
    """Whether any lane is above the limit, a float64, or no number."""

    def codegen(context, builder, signature, args):
        limit = args[1] if sizes.number == types.float64 else builder.fptrunc(args[1], FLOAT)
        above = builder.fcmp_unordered(">", args[0], spread_out(limit, sizes.lanes, builder))
        bits = builder.bitcast(above, ir.IntType(sizes.lanes))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(sizes, types.float64), codegen


@intrinsic
def total(typingctx, vector):
    """The sum of all lanes, in float64."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(DOUBLE, vector.lanes)
        lanes = builder.fpext(args[0], wide) if vector.number == types.float32 else args[0]
        name = f"llvm.vector.reduce.fadd.{suffix(wide)}"
        return call(builder, name, DOUBLE, DOUBLE(-0.0), lanes, fastmath=("reassoc",))

    return types.float64(vector), codegen


def _define(function: Callable[..., Any], result: Callable[[Vector], Vector], emit: Callable[..., Value]) -> None:
    @intrinsic
    def compute(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return emit(builder, *args)

        return result(a)(a, b), codegen

    @overload(function)
    def _operator(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: compute(a, b)
        return None


_CONTRACT: Any = {"flags": ("contract",)}  # a product and a sum may become one instruction
_define(operator.add, lambda a: a, lambda builder, a, b: builder.fadd(a, b, **_CONTRACT))
_define(operator.sub, lambda a: a, lambda builder, a, b: builder.fsub(a, b, **_CONTRACT))
_define(operator.mul, lambda a: a, lambda builder, a, b: builder.fmul(a, b, **_CONTRACT))
_define(operator.truediv, lambda a: a, lambda builder, a, b: builder.fdiv(a, b))
_define(operator.eq, mask_of, lambda builder, a, b: builder.fcmp_ordered("==", a, b))
_define(operator.gt, mask_of, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define(operator.and_, lambda a: a, lambda builder, a, b: builder.and_(a, b))
_define(operator.or_, lambda a: a, lambda builder, a, b: builder.or_(a, b))
