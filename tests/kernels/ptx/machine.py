"""Threads that run a program side by side, and the memory they share."""

import collections
import ctypes
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from .instructions import INSTRUCTIONS
from .program import TYPES, UNSIGNED, WARP, Program, of_bits, to_bits

AT_ONCE = 64  # blocks
# The threads that take part; None is all.
Lanes = np.ndarray | None
_program = functools.cache(Program)


def launch(
    ptx: str, grid: Sequence[int], arguments: Sequence[float], shared: int, places: Sequence[tuple[int, int]]
) -> collections.Counter[str]:
    """Runs a kernel.

    Args:
        ptx: what Triton compiled.
        grid: how many blocks there are in each of three dimensions.
        arguments: those that are left at run time, tensors as addresses.
        shared: bytes of shared memory of a block.
        places: the first address of each tensor and the one behind it.

    Returns:
        How many instructions of a kind warps ran; the ``bytes`` that threads asked global memory for; and the
        ``sectors`` of 32 bytes that hold them, counted for each warp and instruction anew, as a GPU moves them.
    """
    program, memory = _program(ptx), Memory(places)
    counts: collections.Counter[str] = collections.Counter()
    for first in range(0, math.prod(grid), AT_ONCE):
        blocks = np.arange(first, min(math.prod(grid), first + AT_ONCE))
        Machine(program, np.unravel_index(blocks, grid, order="F"), arguments, memory, shared, counts).run()
    return counts


class Machine:
    """Some blocks, in which each register is an array with a number a thread."""

    def __init__(
        self,
        program: Program,
        blocks: Sequence[np.ndarray],
        arguments: Sequence[float],
        memory: "Memory",
        shared: int,
        counts: collections.Counter[str],
    ):
        self.program, self.arguments, self.memory, self.counts = program, arguments, memory, counts
        self.threads = len(blocks[0]) * program.threads
        self.block, thread = np.divmod(np.arange(self.threads), program.threads)
        self.registers = {"%tid.x": thread.astype(np.uint32)}
        for axis, numbers in zip("xyz", blocks, strict=True):
            self.registers[f"%ctaid.{axis}"] = numbers.astype(np.uint32)[self.block]
        self.room = -(-shared // 16) * 16
        self.shared = np.full(len(blocks[0]) * self.room, 0xFF, np.uint8)

    def run(self) -> None:
        """Runs those that are furthest behind, until all are at the end: so branches meet again."""
        program = self.program
        at = np.zeros(self.threads, int)
        while (i := int(at[program.order[at].argmin()])) < program.end:
            behind = at == i
            running = None if behind.all() else behind
            while True:
                instruction = program.instructions[i]
                i += 1
                lanes = running
                if instruction.guard:
                    held = self.bits(instruction.guard) ^ instruction.unless
                    lanes = held if running is None else held & running
                self.count(instruction.opcode, lanes)
                if instruction.name in ("bra", "ret"):
                    at[behind] = i
                    there = program.end if instruction.name == "ret" else program.targets[instruction.operands[0]]
                    at[behind if lanes is None else lanes] = there
                    break
                try:
                    INSTRUCTIONS[instruction.name](self, instruction, lanes)
                except Exception as error:
                    error.add_note(f"in {program.name}: {instruction.text}")
                    raise
                if program.order[i] <= program.end:
                    at[behind] = i
                    break

    def count(self, what: str, lanes: Lanes) -> None:
        self.counts[what] += self.threads // WARP if lanes is None else int(by(WARP, lanes).any(1).sum())

    def read(self, operand: str, kind: str) -> np.ndarray:
        """An operand's values, of a pair in two columns."""
        if operand.startswith("%"):
            return of_bits(self.bits(operand), kind)
        if operand.startswith("global_smem"):
            return np.full(self.threads, int(operand.partition("+")[2] or 0), TYPES[kind])
        bits = int(operand[2:], 16) if operand[:2] in ("0f", "0d") else int(operand.rstrip("U"), 0)
        if kind == "pred":
            return np.full(self.threads, bool(bits))
        return of_bits(np.full(self.threads, bits % 2**64, np.uint64), kind)

    def bits(self, register: str) -> np.ndarray:
        """What is in it; if no instruction has written there, NaN, which shows if it matters."""
        if register not in self.registers:
            dtype = np.bool_ if register.startswith("%p") else UNSIGNED[{"%rs": 2, "%rd": 8}.get(register[:3], 4)]
            self.registers[register] = ~np.zeros(self.threads, dtype)
        return self.registers[register]

    def write(self, register: str, values: np.ndarray, kind: str, lanes: Lanes) -> None:
        if register != "_":
            bits = to_bits(values, kind)
            self.registers[register] = bits if lanes is None else np.where(lanes, bits, self.bits(register))

    def parameter(self, operand: str) -> tuple[float, str]:
        """A parameter's value and type; integers as signed ones, which Triton's are."""
        k = int(re.search(r"_param_(\d+)", operand)[1])
        kind = self.program.parameters[k]
        return self.arguments[k], kind if kind[0] == "f" else f"s{kind[1:]}"

    def place(self, operand: str, space: str, size: int, lanes: Lanes) -> tuple[np.ndarray, np.ndarray]:
        """A memory, and where in it each thread reads or writes ``size`` bytes; those that don't are at 0."""
        base, _, offset = operand.strip("[] ").replace(" ", "").partition("+")
        lanes = np.ones(self.threads, bool) if lanes is None else lanes
        if space == "global":
            address = self.read(base, "s64") + int(offset or 0)
            self.memory.check(address[lanes], size)
            self.counts["bytes"] += size * int(lanes.sum())
            warp = np.arange(self.threads) // WARP
            self.counts["sectors"] += np.unique(np.stack((warp, address // 32))[:, lanes], axis=1).shape[1]
            return self.memory.bytes, np.where(lanes, address - self.memory.start, 0)
        assert space == "shared"
        address = np.where(lanes, self.read(base, "s32").astype(int) + int(offset or 0), 0)
        assert (address >= 0).all(), "before the beginning of shared memory"
        assert (address + size * lanes <= self.room).all(), "beyond the end of shared memory"
        assert not (address % size).any(), "misaligned in shared memory"
        return self.shared, address + self.block * self.room

    def whole(self, size: int, lanes: Lanes) -> bool:
        """Whether all or none of each ``size`` threads take part."""
        return lanes is None or bool((by(size, lanes).all(1) == by(size, lanes).any(1)).all())


def by(size: int, values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, size)


class Memory:
    """The tensors of a launch, as one array of bytes that holds all between them too."""

    def __init__(self, places: Sequence[tuple[int, int]]):
        self.places = places
        self.start = min(start for start, _ in places) // 16 * 16
        size = (max(end for _, end in places) - self.start + 15) // 16 * 16
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.start))

    def check(self, addresses: np.ndarray, size: int) -> None:
        """Raises IndexError where a GPU would read or write what is not the launch's, or stop."""
        inside = np.zeros(len(addresses), bool)
        for start, end in self.places:
            inside |= (addresses >= start) & (addresses + size <= end)
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} threads reach beyond the tensors, to {addresses[~inside][0]:#x}")
        if (addresses % size).any():
            raise IndexError(f"{size} bytes at once at addresses that {size} does not divide")
