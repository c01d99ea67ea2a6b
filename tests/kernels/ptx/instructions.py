"""What each instruction does, of those that Triton's compiler makes of our kernels."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .program import TYPES, UNSIGNED, WARP, Instruction, registers

if TYPE_CHECKING:
    from .machine import Lanes, Machine

ORDERED: dict[str, Callable[..., Any]] = {
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt},
    **{"le": operator.le, "gt": operator.gt, "ge": operator.ge},
}


def elementwise(function: Callable[..., Any]) -> Callable[..., None]:
    def run(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
        target, *sources = i.operands
        with np.errstate(all="ignore"):
            values = function(i, *(machine.read(source, i.type) for source in sources))
        machine.write(target, values, i.type, lanes)

    return run


def numpys(function: Callable[..., Any]) -> Callable[..., None]:
    return elementwise(lambda i, *values: function(*values))


def largest(i: Instruction, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b) if "NaN" in i.modifiers else np.fmax(a, b)


def smallest(i: Instruction, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(a, b) if "NaN" in i.modifiers else np.fmin(a, b)


def quotient(i: Instruction, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of integers rounded to zero; by zero, in threads that have no part in it, anything."""
    if a.dtype.kind == "f":
        return a / b
    b = np.where(b == 0, 1, b)
    return np.where((a < 0) == (b < 0), abs(a) // abs(b), -(abs(a) // abs(b))).astype(a.dtype)


def remainder(i: Instruction, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - quotient(i, a, b) * b


def exp2(i: Instruction, a: np.ndarray) -> np.ndarray:
    y = np.exp2(a)
    return np.where(np.abs(y) < np.finfo(y.dtype).tiny, y.dtype.type(0), y) if "ftz" in i.modifiers else y


def fma(i: Instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    wide = np.longdouble if i.type == "f64" else np.float64  # whose product of two is exact, but for float64
    return (a.astype(wide) * b + c).astype(c.dtype)


def field(i: Instruction, a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    left = 8 * a.itemsize - start - length
    return a << left >> (left + start)


def product(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    target, a, b, *c = i.operands
    kind, way = i.type, i.modifiers[0]
    a, b = machine.read(a, i.type), machine.read(b, i.type)
    if way in ("wide", "hi"):
        kind = f"{i.type[0]}{16 * i.bytes}"
        a, b = a.astype(TYPES[kind]), b.astype(TYPES[kind])
    with np.errstate(all="ignore"):
        values = a * b
        if way == "hi":
            kind, values = i.type, values >> 8 * i.bytes
        values = values + machine.read(c[0], kind) if c else values
    machine.write(target, values, kind, lanes)


def shift(function: Callable[..., Any]) -> Callable[..., None]:
    def run(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
        target, source, places = i.operands
        values, places = machine.read(source, i.type), machine.read(places, "u32")
        assert places.max() < 8 * i.bytes
        machine.write(target, function(values, places.astype(values.dtype)), i.type, lanes)

    return run


def funnel(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    assert i.modifiers == ["l", "wrap", "b32"]
    target, low, high, places = i.operands
    both = machine.read(high, "u64") << 32 | machine.read(low, "u64")
    machine.write(target, both << (machine.read(places, "u64") & 31) >> 32, "b32", lanes)


def permute(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    target, a, b, order = i.operands
    order = int(order.rstrip("U"), 0)
    assert not order & 0x8888
    columns = np.stack((machine.read(a, "b32"), machine.read(b, "b32")), 1).view(np.uint8)
    picked = np.ascontiguousarray(columns[:, [order >> 4 * k & 7 for k in range(4)]])
    machine.write(target, picked.view(np.uint32)[:, 0], "b32", lanes)


def move(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    """From one to one, to several that hold its parts, or from several."""
    targets, sources = map(registers, i.operands)
    if i.type == "pred" or len(targets) == len(sources) == 1:
        machine.write(targets[0], machine.read(sources[0], i.type), i.type, lanes)
        return
    columns = np.stack([machine.read(source, f"b{8 * i.bytes // len(sources)}") for source in sources], 1)
    size = i.bytes // len(targets)
    for target, column in zip(targets, columns.view(UNSIGNED[size]).T, strict=True):
        machine.write(target, column, f"b{8 * size}", lanes)


def convert(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    into, of = i.modifiers[-2:]
    target, *sources = i.operands
    if into.endswith("x2"):
        values = np.stack([machine.read(source, of) for source in reversed(sources)], 1)
    else:
        values = machine.read(sources[0], of)
    assert values.dtype.kind != "f" or into[0] in "fb" or "rzi" in i.modifiers
    with np.errstate(all="ignore"):
        machine.write(target, values.astype(TYPES[into.removesuffix("x2")]), into, lanes)


def compare(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    relation = i.modifiers[0]
    targets, *sources = i.operands
    a, b = (machine.read(source, i.type) for source in sources)
    nan = (a != a) | (b != b)
    if relation in ("num", "nan"):
        held = nan == (relation == "nan")
    elif relation in ORDERED:
        held = ORDERED[relation](a, b) & ~nan
    else:
        held = ORDERED[relation[:-1]](a, b) | nan
    for target, column in zip(targets.split("|"), held.reshape(len(held), -1).T, strict=True):
        machine.write(target, column, "pred", lanes)


def select(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    target, a, b, which = i.operands
    values = np.where(machine.read(which, "pred"), machine.read(a, i.type), machine.read(b, i.type))
    machine.write(target, values, i.type, lanes)


def shuffle(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    target, source, places, *limit_and_members = i.operands
    assert limit_and_members == ["31", "-1"]
    assert machine.whole(WARP, lanes)
    values, places = (machine.read(operand, "b32").reshape(-1, WARP) for operand in (source, places))
    places = places.astype(int)
    there = np.arange(WARP) ^ places if i.modifiers[1] == "bfly" else places % WARP
    machine.write(target, np.take_along_axis(values, there, 1).reshape(-1), "b32", lanes)


def reduce(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    target, source, members = i.operands
    assert machine.whole(WARP, lanes)
    assert (machine.read(members, "s32") == -1).all()
    function = {"max": np.max, "min": np.min, "add": np.sum}[i.modifiers[1]]
    values = function(machine.read(source, i.type).reshape(-1, WARP), 1)
    machine.write(target, np.repeat(values, WARP), i.type, lanes)


def barrier(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    size = WARP if i.modifiers[0] == "warp" else machine.program.threads
    assert machine.whole(size, lanes), "some threads would wait for ever"


def load(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    targets = registers(i.operands[0])
    if i.modifiers[0] == "param":
        value, kind = machine.parameter(i.operands[1])
        numbers = np.full(machine.threads, value, TYPES[kind])
        if i.type[0] == "s" and targets[0].startswith("%rd"):
            kind = "s64"  # a register may be wider than what is loaded
        machine.write(targets[0], numbers, kind, lanes)
        return
    memory, address = machine.place(i.operands[1], i.modifiers[0], i.bytes * len(targets), lanes)
    for k, target in enumerate(targets):
        values = memory.view(UNSIGNED[i.bytes])[address // i.bytes + k]
        machine.write(target, values, f"b{max(16, 8 * i.bytes)}", lanes)


def store(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    sources = registers(i.operands[1])
    memory, address = machine.place(i.operands[0], i.modifiers[0], i.bytes * len(sources), lanes)
    lanes = slice(None) if lanes is None else lanes
    for k, source in enumerate(sources):
        memory.view(UNSIGNED[i.bytes])[address[lanes] // i.bytes + k] = machine.read(source, i.type)[lanes]


def copy(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    """Takes to shared memory at once what a GPU may take later; beyond the bytes there are, zeros."""
    if i.modifiers[1] in ("commit_group", "wait_group"):
        return
    target, source, size, there = i.operands
    size, there = int(size, 0), machine.read(there, "u32")
    assert np.isin(there, (0, size)).all()
    lanes = np.ones(machine.threads, bool) if lanes is None else lanes
    memory, start = machine.place(source, "global", size, lanes & (there > 0))
    shared, end = machine.place(target, "shared", size, lanes)
    values = np.where((there > 0)[:, None], memory[start[:, None] + np.arange(size)], 0)
    shared[end[lanes, None] + np.arange(size)] = values[lanes]


def load_matrices(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    targets = registers(i.operands[0])
    for target, place in zip(targets, places_of_matrices(machine, i, 1, lanes), strict=True):
        halves = np.ascontiguousarray(machine.shared.view(np.uint16)[place])
        machine.write(target, halves.view(np.uint32)[:, 0], "b32", lanes)


def store_matrices(machine: "Machine", i: Instruction, lanes: "Lanes") -> None:
    sources = registers(i.operands[1])
    there = slice(None) if lanes is None else lanes
    for source, place in zip(sources, places_of_matrices(machine, i, 0, lanes), strict=True):
        halves = np.ascontiguousarray(machine.read(source, "b32"))[:, None].view(np.uint16)
        machine.shared.view(np.uint16)[place[there]] = halves[there]


def places_of_matrices(machine: "Machine", i: Instruction, operand: int, lanes: "Lanes") -> list[np.ndarray]:
    """For each matrix of 8 by 8 numbers of 16 bits, where each thread's two are.

    Thread 8 k + j of a warp knows where row j of matrix k is; thread t has row t / 4, columns 2 (t % 4) and the next,
    or with .trans those of the transposed.
    """
    assert machine.whole(WARP, lanes)
    lane, count = np.arange(WARP), len(registers(i.operands[1 - operand]))
    known = np.tile(lane < 8 * count, machine.threads // WARP)
    _, address = machine.place(i.operands[operand], "shared", 16, known if lanes is None else known & lanes)
    rows = address.reshape(-1, WARP) // 2
    row, columns = (lane // 4)[:, None], 2 * (lane % 4)[:, None] + np.arange(2)
    row, columns = (columns, row) if "trans" in i.modifiers else (row, columns)
    return [(rows[:, 8 * k + row] + columns).reshape(-1, 2) for k in range(count)]


INSTRUCTIONS: dict[str, Callable[["Machine", Instruction, "Lanes"], None]] = {
    **{"add": numpys(np.add), "sub": numpys(np.subtract), "neg": numpys(np.negative), "abs": numpys(np.abs)},
    **{"and": numpys(np.bitwise_and), "or": numpys(np.bitwise_or), "xor": numpys(np.bitwise_xor)},
    **{"max": elementwise(largest), "min": elementwise(smallest), "div": elementwise(quotient)},
    **{"rem": elementwise(remainder)},
    **{"ex2": elementwise(exp2), "fma": elementwise(fma), "bfe": elementwise(field), "not": numpys(np.invert)},
    **{"mul": product, "mad": product, "shl": shift(np.left_shift), "shr": shift(np.right_shift)},
    **{"shf": funnel, "prmt": permute, "mov": move, "cvt": convert, "setp": compare, "selp": select},
    **{"shfl": shuffle, "redux": reduce, "bar": barrier, "ld": load, "st": store, "cp": copy},
    **{"ldmatrix": load_matrices, "stmatrix": store_matrices},
}
