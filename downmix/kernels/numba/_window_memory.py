"""One place of many windows: which lanes have it in the map, and how it is read, and added to.

All in LLVM, not as functions that Numba inlines: those it copies and types anew at each use, which took more than half
of the time to compile a kernel.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._common import intrinsic
from ._vector_memory import (
    load_apart,
    load_every_second,
    load_neighbours,
    loaded,
    pointer_to,
    store_neighbours,
)
from ._vectors import Value, all_set, spread_out, vector_of

_INT64 = ir.IntType(64)


@intrinsic
def clip(typingctx, start, size, count, dilation):
    """Which of ``count`` places, a dilation apart from ``start`` on, lie in the map: from where to before where."""

    def codegen(context, builder, signature, args):
        start, size, count, dilation = args

        def places(length: Value) -> Value:
            """How many of a run of places a dilation apart start within a length."""
            length = builder.select(builder.icmp_signed("<", length, _INT64(0)), _INT64(0), length)
            return builder.sdiv(builder.add(length, builder.sub(dilation, _INT64(1))), dilation)

        end = builder.add(start, builder.mul(builder.sub(count, _INT64(1)), dilation))
        inside = builder.and_(builder.icmp_signed(">=", start, _INT64(0)), builder.icmp_signed("<", end, size))
        before = builder.block
        with builder.if_then(builder.not_(inside)):  # nearly no window: divisions take long
            last = places(builder.sub(size, start))
            last = builder.select(builder.icmp_signed("<", last, count), last, count)
            skipped, clipped = places(builder.neg(start)), builder.block
        bounds = []
        for known, found in ((_INT64(0), skipped), (count, last)):
            bound = builder.phi(_INT64)
            bound.add_incoming(known, before)
            bound.add_incoming(found, clipped)
            bounds.append(bound)
        return context.make_tuple(builder, signature.return_type, bounds)

    number = types.int64
    return types.UniTuple(number, 2)(number, number, number, number), codegen


@intrinsic
def all_inside(typingctx, rows, KD, KH):
    """Whether no row of a window is padding; then they are ``(0, KD, 0, KH)``, which a compiler can unroll."""

    def codegen(context, builder, signature, args):
        d0, d1, h0, h1 = cgutils.unpack_tuple(builder, args[0])
        deep = builder.icmp_signed("==", builder.sub(d1, d0), args[1])
        return builder.and_(deep, builder.icmp_signed("==", builder.sub(h1, h0), args[2]))

    return types.boolean(rows, types.int64, types.int64), codegen


@intrinsic
def place_of(typingctx, at, kd, kh, kw, steps):
    """Where a place lies in memory, of a window that starts ``at``."""

    def codegen(context, builder, signature, args):
        at, *numbers, steps = args
        for i, number in enumerate(numbers):
            step = builder.mul(number, builder.extract_value(steps, i), flags=("nsw",))
            at = builder.add(at, step, flags=("nsw",))
        return at

    number = types.int64
    return number(number, number, number, number, steps), codegen


@intrinsic(prefer_literal=True)
def inside(typingctx, kw, edges, lane_step, padded, mask):
    """The lanes of the mask whose place ``kw`` lies in the map; all of them where nothing is padded."""

    def codegen(context, builder, signature, args):
        if not padded.literal_value:
            return args[4]
        left, size, stride, dilation = (builder.extract_value(args[1], i) for i in range(4))
        step = _INT64(lane_step.literal_value) if lane_step.literal_value else stride
        lanes = ir.VectorType(_INT64, mask.lanes)
        first = spread_out(builder.add(left, builder.mul(args[0], dilation)), mask.lanes, builder)
        steps = builder.mul(spread_out(step, mask.lanes, builder), ir.Constant(lanes, list(range(mask.lanes))))
        # Unsigned, what lies before the map is larger than any size.
        here = builder.icmp_unsigned("<", builder.add(first, steps), spread_out(size, mask.lanes, builder))
        return builder.and_(args[4], here)

    return mask(types.int64, edges, lane_step, padded, mask), codegen


@intrinsic(prefer_literal=True)
def read(typingctx, array, index, edges, lane_step, mask):
    """The numbers of a place; 0 outside the mask, where nothing is read."""
    step = lane_step.literal_value

    def codegen(context, builder, signature, args):
        pointer, mask = pointer_to(context, builder, signature.args[0], *args[:2]), args[4]
        if step == 1:
            return load_neighbours(builder, array.dtype, pointer, mask)
        if step == 2:
            return load_every_second(builder, array.dtype, pointer, mask)
        return load_apart(builder, array.dtype, pointer, builder.extract_value(args[2], 2), mask)

    return loaded(array)(array, types.int64, edges, lane_step, mask), codegen


@intrinsic(prefer_literal=True)
def registers(typingctx, like, count):
    """Room for a constant ``count`` of ``like``'s numbers: registers, if all that uses it is unrolled."""
    pointer = types.CPointer(like.dtype)

    def codegen(context, builder, signature, args):
        return cgutils.alloca_once(builder, context.get_value_type(like.dtype), _INT64(count.literal_value))

    return pointer(like, count), codegen


def _halves(context: Any, builder: Any, kept_type: Any, kept: Value, n: Value) -> list[Value]:
    lanes = vector_of(kept_type.dtype).lanes
    first = builder.mul(n, _INT64(2 * lanes))
    return [pointer_to(context, builder, kept_type, kept, builder.add(first, _INT64(half * lanes))) for half in (0, 1)]


@intrinsic
def keep_pair(typingctx, kept, n, first, second):
    """Stores two vectors for the ``n``-th place."""

    def codegen(context, builder, signature, args):
        pointers = _halves(context, builder, signature.args[0], *args[:2])
        for pointer, value in zip(pointers, args[2:], strict=True):
            store_neighbours(builder, kept.dtype, value, pointer, all_set(first.lanes))
        return context.get_dummy_value()

    return types.void(kept, types.int64, first, second), codegen


@intrinsic
def kept_pair(typingctx, kept, n):
    """What `keep_pair` stored."""
    vector = vector_of(kept.dtype)

    def codegen(context, builder, signature, args):
        pointers = _halves(context, builder, signature.args[0], *args)
        values = [load_neighbours(builder, kept.dtype, pointer, all_set(vector.lanes)) for pointer in pointers]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(vector, 2)(kept, types.int64), codegen
