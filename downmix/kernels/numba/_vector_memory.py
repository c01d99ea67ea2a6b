"""Vectors from and to memory, in any floating dtype, any step and layout; lanes outside a mask touch nothing."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._common import intrinsic
from ._vectors import DOUBLE, FLOAT, INT, Value, Vector, call, llvm, number_of, shuffle, suffix, vector_of

_BYTES_OF = {ir.IntType(16): 2, FLOAT: 4, DOUBLE: 8}


def pointer_to(context: Any, builder: Any, array_type: Any, array: Value, index: Value) -> Value:
    if isinstance(array_type, types.Array):
        array = context.make_array(array_type)(context, builder, value=array).data
    return builder.gep(array, [index])


def _widened(builder: Any, stored: Any, raw: Value) -> Value:
    lanes = raw.type.count
    if stored == types.int16:
        half = builder.bitcast(raw, ir.VectorType(ir.HalfType(), lanes))
        return builder.fpext(half, ir.VectorType(FLOAT, lanes))
    if stored == types.uint16:
        bits = builder.zext(raw, ir.VectorType(INT, lanes))
        shifted = builder.shl(bits, ir.Constant(bits.type, [16] * lanes))
        return builder.bitcast(shifted, ir.VectorType(FLOAT, lanes))
    return raw


def _narrowed(builder: Any, stored: Any, value: Value) -> Value:
    lanes = value.type.count
    small = ir.VectorType(ir.IntType(16), lanes)
    if stored == types.int16:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes)), small)
    if stored == types.uint16:  # round to nearest even by hand; a NaN keeps being one
        bits = builder.bitcast(value, ir.VectorType(INT, lanes))

        def constant(number: int) -> ir.Constant:
            return ir.Constant(bits.type, [number] * lanes)

        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.lshr(builder.add(builder.add(bits, constant(0x7FFF)), odd), constant(16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, constant(0x7FC0), rounded), small)
    return value


def _masked_load(builder: Any, pointer: Value, mask: Value, raw: ir.VectorType) -> Value:
    align = INT(_BYTES_OF[raw.element])
    return call(builder, f"llvm.masked.load.{suffix(raw)}.p0", raw, pointer, align, mask, ir.Constant(raw, None))


def _masked_store(builder: Any, value: Value, pointer: Value, mask: Value) -> None:
    raw = value.type
    align = INT(_BYTES_OF[raw.element])
    call(builder, f"llvm.masked.store.{suffix(raw)}.p0", ir.VoidType(), value, pointer, align, mask)


def loaded(array: Any) -> Vector:
    """The type of what is loaded of an array."""
    return vector_of(number_of(array.dtype))


def _raw(stored: Any) -> ir.VectorType:
    vector = llvm(vector_of(number_of(stored)))
    return ir.VectorType(ir.IntType(16), vector.count) if stored in (types.int16, types.uint16) else vector


def load_neighbours(builder: Any, stored: Any, pointer: Value, mask: Value) -> Value:
    return _widened(builder, stored, _masked_load(builder, pointer, mask, _raw(stored)))


def load_every_second(builder: Any, stored: Any, pointer: Value, mask: Value) -> Value:
    raw = _raw(stored)
    lanes, nothing = raw.count, ir.Constant(mask.type, [0] * raw.count)

    def load_half(half: int) -> Value:
        here = [lane for j in range(lanes // 2) for lane in (half * lanes // 2 + j, lanes)]
        at = builder.gep(pointer, [ir.IntType(64)(half * lanes)], source_etype=raw.element)
        return _masked_load(builder, at, shuffle(builder, mask, nothing, here), raw)

    return _widened(builder, stored, shuffle(builder, load_half(0), load_half(1), list(range(0, 2 * lanes, 2))))


def load_apart(builder: Any, stored: Any, pointer: Value, step: Value, mask: Value) -> Value:
    """Elements ``step`` apart, one by one."""
    raw = _raw(stored)
    gathered = ir.Constant(raw, None)
    for lane in range(raw.count):
        here = builder.extract_element(mask, INT(lane))
        before = builder.block
        with builder.if_then(here):
            value = builder.load(builder.gep(pointer, [builder.mul(step, step.type(lane))]))
            more = builder.insert_element(gathered, builder.bitcast(value, raw.element), INT(lane))
            inside = builder.block
        merged = builder.phi(raw)
        merged.add_incoming(gathered, before)
        merged.add_incoming(more, inside)
        gathered = merged
    return _widened(builder, stored, gathered)


@intrinsic
def load(typingctx, array, index, mask):
    """Neighbours from ``index`` on, as numbers to compute with; 0 outside the mask, where nothing is read."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        return load_neighbours(builder, array.dtype, pointer, args[2])

    return loaded(array)(array, index, mask), codegen


@intrinsic
def load_steps(typingctx, array, index, step, mask):
    """As `load`, of elements ``step`` apart, one by one."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        return load_apart(builder, array.dtype, pointer, *args[2:])

    return loaded(array)(array, index, step, mask), codegen


def store_neighbours(builder: Any, stored: Any, value: Value, pointer: Value, mask: Value) -> None:
    _masked_store(builder, _narrowed(builder, stored, value), pointer, mask)


@intrinsic
def store(typingctx, array, index, vector, mask):
    """Writes the lanes of the mask to neighbours from ``index`` on, rounded to the array's dtype."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        store_neighbours(builder, array.dtype, args[2], pointer, args[3])
        return context.get_dummy_value()

    return types.void(array, index, vector, mask), codegen


@intrinsic
def add(typingctx, array, index, vector, mask):
    """As `store`, of the sum with what is there."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        before = load_neighbours(builder, array.dtype, pointer, args[3])
        store_neighbours(builder, array.dtype, builder.fadd(before, args[2]), pointer, args[3])
        return context.get_dummy_value()

    return types.void(array, index, vector, mask), codegen


@intrinsic
def store_steps(typingctx, array, index, step, vector, mask):
    """As `store`, to elements ``step`` apart, one by one."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        raw = _narrowed(builder, array.dtype, args[3])
        for lane in range(raw.type.count):
            with builder.if_then(builder.extract_element(args[4], INT(lane))):
                at = builder.gep(pointer, [builder.mul(args[2], args[2].type(lane))])
                builder.store(builder.extract_element(raw, INT(lane)), at)
        return context.get_dummy_value()

    return types.void(array, index, step, vector, mask), codegen


@intrinsic
def clear(typingctx, array, index, count):
    """Writes ``count`` zeros from ``index`` on."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        size = builder.mul(args[2], ir.IntType(64)(array.dtype.bitwidth // 8))
        cgutils.memset(builder, pointer, size, 0)  # of floats, too: +0 is all zero bits
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@intrinsic
def zip_lanes(typingctx, a, b):
    """The lanes of both in turn, as two vectors, one after the other."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, signature.return_type, _interleave(builder, list(args)))

    return types.UniTuple(a, 2)(a, b), codegen


@intrinsic(prefer_literal=True)
def load_members(typingctx, array, index, size, mask):
    """Groups of ``size`` neighbours from ``index`` on, a lane each: a tuple of vectors, one of all first members, one
    of all second. ``size`` is a constant."""
    vector, raw, members = loaded(array), _raw(array.dtype), size.literal_value

    def codegen(context, builder, signature, args):
        pointer, lanes = pointer_to(context, builder, signature.args[0], *args[:2]), raw.count
        rows = []
        for k in range(members):
            mask = shuffle(builder, args[3], args[3], [(k * lanes + j) // members for j in range(lanes)])
            at = builder.gep(pointer, [ir.IntType(64)(k * lanes)], source_etype=raw.element)
            rows.append(_widened(builder, array.dtype, _masked_load(builder, at, mask, raw)))
        return context.make_tuple(builder, signature.return_type, _separate(builder, rows))

    return types.UniTuple(vector, members)(array, index, size, mask), codegen


@intrinsic
def store_members(typingctx, array, index, vectors, mask):
    """The way back of `load_members`."""

    def codegen(context, builder, signature, args):
        pointer, members = pointer_to(context, builder, signature.args[0], *args[:2]), vectors.count
        lanes = vectors.dtype.lanes
        rows = _interleave(builder, [builder.extract_value(args[2], c) for c in range(members)])
        for k, row in enumerate(rows):
            raw = _narrowed(builder, array.dtype, row)
            mask = shuffle(builder, args[3], args[3], [(k * lanes + j) // members for j in range(lanes)])
            at = builder.gep(pointer, [ir.IntType(64)(k * lanes)], source_etype=raw.type.element)
            _masked_store(builder, raw, at, mask)
        return context.get_dummy_value()

    return types.void(array, index, vectors, mask), codegen


def _separate(builder: Any, rows: list[Value]) -> list[Value]:
    """From rows of groups of len(rows) members, one after another, a vector a member."""
    size, lanes = len(rows), rows[0].type.count
    if size % 2 == 0:  # evens and odds first: far fewer shuffles than one by one
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        evens, odds = (
            _separate(builder, [shuffle(builder, a, b, list(range(first, 2 * lanes, 2))) for a, b in pairs])
            for first in (0, 1)
        )
        return [member for pair in zip(evens, odds, strict=True) for member in pair]
    return [_pick_lanes(builder, rows, [j * size + c for j in range(lanes)]) for c in range(size)]


def _interleave(builder: Any, members: list[Value]) -> list[Value]:
    """The way back of `_separate`."""
    size, lanes = len(members), members[0].type.count
    if size % 2 == 0:
        pairs = zip(_interleave(builder, members[::2]), _interleave(builder, members[1::2]), strict=True)
        zipped = [lane for j in range(lanes) for lane in (j, lanes + j)]
        return [shuffle(builder, *pair, half) for pair in pairs for half in (zipped[:lanes], zipped[lanes:])]
    places = [divmod(at, size) for at in range(size * lanes)]
    rows = [[c * lanes + j for j, c in places[k * lanes : (k + 1) * lanes]] for k in range(size)]
    return [_pick_lanes(builder, members, row) for row in rows]


def _pick_lanes(builder: Any, rows: list[Value], places: list[int]) -> Value:
    """The lanes at ``places`` in all rows one after another."""
    lanes, picked = len(places), rows[0]
    for k, row in enumerate(rows):
        here = [lanes + place % lanes if place // lanes == k else j for j, place in enumerate(places)]
        picked = shuffle(builder, picked, row, here)
    return picked


@intrinsic
def prefetch(typingctx, array, index):
    """Has the cache line at ``index`` fetched, which need not be memory of the array's."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], *args)
        call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, INT(0), INT(3), INT(1))
        return context.get_dummy_value()

    return types.void(array, index), codegen
