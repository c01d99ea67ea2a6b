"""How the windows of a tensor are put into tiles: what a pooling kernel is launched with."""

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from ._common import LOAD_BYTES, THREADS, TRITON_DTYPES, alignment, power_of_two


class Plan:
    """Views of tensors with 5 dimensions, the constants of a kernel that walks windows, and its tiles.

    Args:
        inputs (list[Tensor]): tensors of the input's shape, the input itself first.
        outputs (list[Tensor]): tensors of the output's shape, at least one.
        loads (int): loads of 16 bytes that a thread has under way.
        cover (bool): where windows lie side by side, add some beyond the last output until each element has its own.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        *,
        loads: int,
        cover: bool = False,
    ):
        missing = 3 - len(kernel_size)
        self.inputs, self.outputs = list(inputs), list(outputs)
        for _ in range(missing):
            self._view(lambda t: t.unsqueeze(2))
        self.kernel, self.stride = [1] * missing + list(kernel_size), [1] * missing + list(stride)
        self.padding, self.dilation = [0] * missing + list(padding), [1] * missing + list(dilation)
        x = self.inputs[0]
        self.channels_inner = x.shape[1] > 1 and x.stride(1) == 1 and x.stride(4) != 1
        self._simplify()
        self.windows = list(self.outputs[0].shape[2:])
        if cover:
            sizes = self.inputs[0].shape[2:]
            self.windows = [triton.cdiv(n + p, s) for n, p, s in zip(sizes, self.padding, self.stride, strict=True)]

        self.rows, self.lanes = self._rows_and_lanes(self.windows)
        kernel, beside = self.kernel, self.stride[2] == self.kernel[2] > 1 == self.dilation[2]
        long = math.prod(kernel) > 16
        if self.channels_inner:
            block_k = power_of_two(kernel[2], 32) if long else 1
        else:
            block_k = power_of_two(kernel[2], 4096) if long or beside else 1
        self.wide = not self.channels_inner and beside and block_k == kernel[2]
        steps = kernel[0] * kernel[1] * triton.cdiv(kernel[2], block_k)
        block_r, block_l = self._blocks(max(1, loads // steps), self.rows, self.lanes, block_k)
        of_a_thread = max(1, block_r * block_l * block_k // THREADS)
        # A window is read at once and kept where 96 registers of each thread hold it, else 64 by 64.
        at_once = steps <= 16 and steps * of_a_thread <= 96
        self.constants: dict[str, Any] = {
            **self._constants(),
            "EDGES": self._edges(),
            "WIDE": self.wide,
            "BLOCK_R": block_r,
            "BLOCK_L": block_l,
            "BLOCK_K": block_k,
            "STEPS": steps,
            "UNROLL": steps if at_once else max(1, min(8, 64 // of_a_thread)),
        }
        self.programs = triton.cdiv(self.rows, block_r) * triton.cdiv(self.lanes, block_l)

    @property
    def side_by_side(self) -> bool:
        """Whether no element is in two windows and none lies between two."""
        return self.stride == self.kernel and max(self.dilation) == 1

    def gather(self) -> tuple[int, int, int, list[int], dict[str, Any]]:
        """For a kernel that visits inputs by the cells between windows' starts.

        The programs, rows, lanes and cells in all, and the constants.
        """
        shape = self.inputs[0].shape[2:]
        cells = [triton.cdiv(size + p, s) for size, p, s in zip(shape, self.padding, self.stride, strict=True)]
        overlaps = tuple(
            ((k - 1) * d) // s + 1 for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)
        )
        rows, lanes = self._rows_and_lanes(cells)
        # With lanes in space a cell has many addresses in registers: of half precision no more cells than of float32.
        fewer = 1 if self.channels_inner else max(1, 4 // self.inputs[0].element_size())
        block_r, block_l = self._blocks(1, rows, lanes, fewer)
        phases, steps = math.prod(self.stride), math.prod(overlaps)
        constants = {
            **self._constants(),
            "OVERLAPS": overlaps,
            "BLOCK_R": block_r,
            "BLOCK_L": block_l,
            "PHASES": phases,
            "PHASES_UNROLL": phases if phases * steps <= 64 else 1,
            "STEPS": steps,
            "UNROLL": steps if steps <= 16 else 4,
        }
        return triton.cdiv(rows, block_r) * triton.cdiv(lanes, block_l), rows, lanes, cells, constants

    def alignments(self, **tensors: Tensor) -> dict[str, int]:
        """The constants that say of each tensor what divides its steps and lanes."""
        return {f"{name}_ALIGN": self._alignment(tensor) for name, tensor in tensors.items()}

    def _alignment(self, x: Tensor) -> int:
        """What divides all steps of ``x`` but that between lanes, and the number of its lanes; 1 for no wide access.

        Where lanes are windows that overlap in a row, loads can't be wide. If stores are, the compiler gives each
        thread neighbouring windows, and a load of a warp falls into many cache lines; with narrow ones, into few.
        """
        if not self.channels_inner and self.constants["BLOCK_K"] == 1 < self.kernel[2]:
            return 1
        slow = (0, 2, 3, 4) if self.channels_inner else (0, 1, 2, 3)
        lanes = (x.shape[1],) if self.channels_inner else (x.shape[4], self.lanes * self.kernel[2] if self.wide else 0)
        return alignment(*lanes, *(x.stride(i) for i in slow if x.shape[i] > 1))

    def _view(self, view: Any) -> None:
        self.inputs, self.outputs = [view(t) for t in self.inputs], [view(t) for t in self.outputs]

    def _simplify(self) -> None:
        for i, count in enumerate(self.outputs[0].shape[2:]):
            if self.kernel[i] == 1:
                self.dilation[i] = 1
            if count == 1 == self.dilation[i]:
                self.stride[i] = self.kernel[i]
        # A window of whole rows is one long row, so that global pooling reads all of its map in one step.
        for _ in range(2):
            size = self.inputs[0].shape[4]
            whole_rows = self.kernel[2] == size and self.outputs[0].shape[4] == 1 and self.padding[2] == 0
            if not (whole_rows and self.dilation[1:] == [1, 1] and all(_joins(t, 3) for t in self.inputs)):
                break
            if self.kernel[1] * size < 128 and self.kernel[1] * size % 8:
                break  # too short and uneven for wide loads: then adding row to row is quicker
            self.kernel = [1, self.kernel[0], self.kernel[1] * size]
            self.stride = [1, self.stride[0], self.stride[1] * size]
            self.padding = [0, self.padding[0], self.padding[1] * size]
            self.dilation = [1, self.dilation[0], 1]
            self._view(lambda t: t.flatten(3).unsqueeze(2))
        if not self.channels_inner and all(_joins(t, 0) for t in (*self.inputs, *self.outputs)):
            self._view(lambda t: t.flatten(0, 1).unsqueeze(1))  # saves the kernel a division

    def _rows_and_lanes(self, space: Sequence[int]) -> tuple[int, int]:
        batch, channels = self.inputs[0].shape[:2]
        if self.channels_inner:
            return batch * math.prod(space), channels
        return batch * channels * space[0] * space[1], space[2]

    def _blocks(self, loads: int, rows: int, lanes: int, block_k: int) -> tuple[int, int]:
        x = self.inputs[0]
        # 16 bytes a thread and load; with channels inside 512 bytes side by side, which are whole cache lines.
        elements = THREADS * LOAD_BYTES // x.element_size() * loads // block_k
        widest = min(elements, 512 // x.element_size()) if self.channels_inner else elements
        block_l = power_of_two(lanes, max(1, widest))
        return power_of_two(rows, max(1, elements // block_l)), block_l

    def _edges(self) -> tuple[bool, ...]:
        """Whether a window may reach beyond the input, in each dimension."""
        return tuple(
            p > 0 or (count - 1) * s + (k - 1) * d + 1 > size
            for size, count, k, s, p, d in zip(
                self.inputs[0].shape[2:],
                self.windows,
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )

    def _constants(self) -> dict[str, Any]:
        x = self.inputs[0]
        return {
            "KERNEL": tuple(self.kernel),
            "STRIDE": tuple(self.stride),
            "PADDING": tuple(self.padding),
            "DILATION": tuple(self.dilation),
            "DTYPE": TRITON_DTYPES[compute_dtype(x)],
            # Rows are divided into coordinates, which in 64 bits is slow.
            "INDEX": tl.int32 if max(x.numel(), self.rows * self.lanes) < 2**31 - 2**16 else tl.int64,
            "CHANNELS_INNER": self.channels_inner,
        }


def _joins(x: Tensor, i: int) -> bool:
    """Whether dimensions i and i + 1 can be one without a copy."""
    return x.shape[i] == 1 or x.shape[i + 1] == 1 or x.stride(i) == x.shape[i + 1] * x.stride(i + 1)
