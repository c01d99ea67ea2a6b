"""PTX as text and its numbers as bits."""

import re

import numpy as np

WARP = 32
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# bfloat16 is computed with in float32 and rounded when it is written.
TYPES = {
    **{f"{letter}{8 * size}": dtype for letter in "bu" for size, dtype in UNSIGNED.items()},
    **{"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64},
    **{"f16": np.float16, "bf16": np.float32, "f32": np.float32, "f64": np.float64},
}


class Program:
    """A kernel's instructions, its parameters' types, and where its labels are."""

    def __init__(self, ptx: str):
        head, rest = re.split(r"\n\{\n", ptx, maxsplit=1)
        self.name = re.search(r"\.entry (\w+)", head)[1]
        self.parameters = re.findall(r"\.param \.(\w+)", head)
        self.threads = int(re.search(r"\.reqntid (\d+)", head)[1])
        self.instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in re.split(r"\n\}", rest, maxsplit=1)[0].splitlines():
            text = line.split("//")[0].strip().rstrip(";")
            if scope := re.fullmatch(r"\{ \.reg [^;]*;(.*); \}", text):  # a name of its own for what nobody reads
                text = scope[1].strip()
            if label := re.fullmatch(r"(\$\w+):", text):
                labels[label[1]] = len(self.instructions)
            elif text and not text.startswith("."):
                self.instructions.append(Instruction(text))
        self.end = len(self.instructions)
        self.targets = {i.operands[0]: labels[i.operands[0]] for i in self.instructions if i.name == "bra"}
        self.order = self._order()

    def _order(self) -> np.ndarray:
        """A rank of each instruction that a branch leads to or follows: what comes before, in a graph without loops,
        has a lower one; others have the highest."""
        order = np.full(self.end + 1, self.end + 1)
        blocks = {0, *self.targets.values(), *(k + 1 for k, i in enumerate(self.instructions) if i.name == "bra")}
        done: list[int] = []
        seen = {0}

        def visit(start: int) -> None:
            for there in self._next(start, blocks):
                if there not in seen:
                    seen.add(there)
                    visit(there)
            done.append(start)

        visit(0)
        order[done[::-1]] = range(len(done))
        order[self.end] = self.end
        return order

    def _next(self, start: int, blocks: set[int]) -> list[int]:
        """Where a block's end leads, branches first."""
        k = start
        while k < self.end:
            instruction = self.instructions[k]
            k += 1
            if instruction.name == "ret" and not instruction.guard:
                return []
            if instruction.name == "bra":
                target = self.targets[instruction.operands[0]]
                return [target, k] if instruction.guard else [target]
            if k in blocks:
                return [k]
        return []


class Instruction:
    """``@%p1 ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1]``, say."""

    def __init__(self, text: str):
        self.text = text
        found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text)
        assert found, text
        unless, self.guard, self.opcode, rest = found.groups()
        self.unless = unless == "!"
        self.name, *self.modifiers = self.opcode.split(".")  # ld; global, v4, b32
        self.type = self.modifiers[-1] if self.modifiers else ""
        self.operands = [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)]

    @property
    def bytes(self) -> int:
        """Of a number of its type."""
        return int(self.type.lstrip("bsuf")) // 8


def registers(operand: str) -> list[str]:
    """Those of a vector, or of a single one."""
    return operand.strip("{}").replace(" ", "").split(",")


def of_bits(bits: np.ndarray, kind: str) -> np.ndarray:
    """The numbers of ``kind`` that these bits, or their lower part, mean; of a pair, in two columns."""
    if kind == "pred":
        return bits
    if kind.endswith("x2"):
        return of_bits(np.ascontiguousarray(bits)[:, None].view(np.uint16), kind[:-2])
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    dtype = np.dtype(TYPES[kind])
    return bits.astype(UNSIGNED[dtype.itemsize]).view(dtype)


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """What :func:`of_bits` turns into these values, once they are rounded."""
    if kind == "pred":
        return values
    if kind.endswith("x2"):
        return np.ascontiguousarray(to_bits(values, kind[:-2])).view(np.uint32)[:, 0]
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, TYPES[kind])
    bits = values.view(UNSIGNED[values.itemsize])
    if kind == "bf16":
        rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)
    return bits
