"""How windows that overlap are shared out among lanes and programs, and the launches of `_overlapping.py`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import LOAD_BYTES, THREADS, Launch, alignment, power_of_two
from ._overlapping import soft_pool_rows_backward_kernel, soft_pool_rows_forward_kernel
from ._plan import Plan


class Share(NamedTuple):
    """What a lane is given.

    Attributes:
        columns: of x, about; or 4, where more do not fit into registers.
        lanes: of a thread, side by side in memory, which make its loads wider.
        steps: rows of windows at least, as in backward those above are computed for each lane.
        programs: that keep all of the GPU busy; where there are more, lanes take more than that many steps.
        registers: of a thread at most; with 128 of them, 16 warps share a multiprocessor.
    """

    columns: int
    lanes: int
    steps: int
    programs: int
    registers: int = 128

    def holds(self, numbers: int) -> bool:
        """Whether a thread's registers hold so many numbers, and all else."""
        return numbers <= self.registers * 5 // 8


# By whether channels lie side by side.
FORWARD = {False: Share(8, 1, 8, 8192), True: Share(4, 2, 8, 8192)}
BACKWARD = {False: Share(8, 1, 8, 2048), True: Share(8, 1, 8, 8192)}
# Where a thread holds more numbers, the compiler would take a few registers more, and is told not to.
_MANY = 48


def fits(plan: Plan) -> bool:
    """Whether these kernels take the windows: they overlap without gaps, and a lane's registers hold theirs."""
    if plan.side_by_side or (plan.kernel[0], plan.stride[0], plan.padding[0]) != (1, 1, 0) or max(plan.dilation) > 1:
        return False
    return all(k >= s for k, s in zip(plan.kernel, plan.stride, strict=True)) and math.prod(plan.kernel) <= 25


def forward_launch(plan: Plan) -> Launch:
    (x,), (y,) = plan.inputs, plan.outputs
    (_, k_h, k_w), (_, s_h, s_w) = plan.kernel, plan.stride

    def held(width: int) -> int:
        return (k_h - s_h) * _parts(x) * width + 2 * ((width - 1) * s_w + k_w)

    programs, counts, constants = _share_out(plan, y.shape[3:], FORWARD[plan.channels_inner], held)
    width = constants["CELLS"]
    constants |= {"VECTOR": _vector(plan, width * s_w, x), "Y_VECTOR": _vector(plan, width, y)}
    arguments = (x.stride(), y.stride(), counts, tuple(x.shape[1:]), tuple(y.shape[1:]))
    return Launch(soft_pool_rows_forward_kernel, programs, arguments, constants | _layouts(plan, X=x, Y=y))


def backward_launch(plan: Plan, exact: bool) -> Launch:
    (x, dx), (grad,) = plan.inputs, plan.outputs
    (_, k_h, k_w), (_, s_h, s_w), (_, p_h, p_w) = plan.kernel, plan.stride, plan.padding
    left = -((k_w - 1 - p_w) // s_w)  # the first window that reaches into a lane's own columns

    def windows(width: int) -> int:
        return (width * s_w - 1 + p_w) // s_w - left + 1

    def held(width: int) -> int:
        return (k_h - s_h) * (_parts(x) * windows(width) + 3 * width * s_w) + 2 * ((windows(width) - 1) * s_w + k_w)

    cells = [triton.cdiv(x.shape[3] + p_h, s_h), triton.cdiv(x.shape[4], s_w)]
    programs, counts, constants = _share_out(plan, cells, BACKWARD[plan.channels_inner], held)
    width = constants["CELLS"]
    constants |= {"LEFT": left, "WINDOWS": windows(width), "EXACT": exact}
    constants |= {"VECTOR": _vector(plan, width * s_w, x, dx), "GRAD_VECTOR": _vector(plan, width, grad)}
    arguments = (grad.stride(), x.stride(), dx.stride(), counts, tuple(x.shape[1:]), tuple(grad.shape[1:]))
    return Launch(
        soft_pool_rows_backward_kernel, programs, arguments, constants | _layouts(plan, X=x, GRAD=grad, DX=dx)
    )


def _parts(x: Tensor) -> int:
    """The numbers that are kept of a window's part in a row."""
    return 3 if x.element_size() > 2 else 2


def _rows_at_once(plan: Plan) -> int:
    """Rows of windows that are computed together: two have sums in common where they share rows of elements."""
    return 2 if plan.kernel[1] - plan.stride[1] > 1 else 1


def _vector(plan: Plan, columns: int, *tensors: Tensor) -> int:
    """How many columns of each tensor a lane takes at once."""
    beside = not plan.channels_inner and all(tensor.stride(4) == 1 for tensor in tensors)
    widest = LOAD_BYTES // max(4, tensors[0].element_size())
    return math.gcd(widest, columns, *map(_divisor, tensors)) if beside else 1


def _divisor(x: Tensor) -> int:
    """What divides a row, and each step but that along it, where lanes do not lie side by side."""
    return alignment(x.shape[4], *(x.stride(i) for i in range(4) if x.shape[i] > 1))


def _layouts(plan: Plan, **tensors: Tensor) -> dict[str, int]:
    """The constants that say of each tensor the step from column to column, and what divides the others."""
    steps = {f"{name}_STEP": tensor.stride(4) for name, tensor in tensors.items()}
    if plan.channels_inner:
        return steps | plan.alignments(**tensors)
    return steps | {f"{name}_ALIGN": _divisor(tensor) for name, tensor in tensors.items()}


def _share_out(
    plan: Plan, cells: Sequence[int], share: Share, held: Callable[[int], int]
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """The number of programs; those of rows of tiles, chunks, groups and steps of each; and the kernels' constants.

    Args:
        plan: of the windows.
        cells: rows and columns of cells to compute.
        share: of a lane.
        held: how many numbers a lane holds, of how many cells it has.
    """
    batch, channels, depth = plan.inputs[0].shape[:3]
    size = 2 if plan.constants["DTYPE"] == tl.float64 else 1
    widths = [max(1, columns // plan.stride[2]) for columns in (share.columns, 4)]
    fitting = [width for width in widths if share.holds(size * held(width))] or widths[-1:]
    width = min(fitting, key=lambda width: triton.cdiv(cells[1], width) * width)  # with the fewest cells beyond the map
    numbers = size * held(width)
    lanes = share.lanes if share.holds(share.lanes * numbers) else 1
    block_l = power_of_two(channels, 64) if plan.channels_inner else 1
    block_r = THREADS * lanes // block_l
    groups = triton.cdiv(cells[1], width)
    rows = batch * depth * groups * (1 if plan.channels_inner else channels)
    l_tiles = triton.cdiv(channels, block_l) if plan.channels_inner else 1
    chunks = min(triton.cdiv(share.programs, triton.cdiv(rows, block_r) * l_tiles), max(1, cells[0] // share.steps))
    steps = triton.cdiv(cells[0], chunks)
    steps += -steps % _rows_at_once(plan)
    chunks = triton.cdiv(cells[0], steps)
    rows *= chunks
    names = ("KERNEL", "STRIDE", "PADDING", "DTYPE", "INDEX", "CHANNELS_INNER")
    constants = {name: plan.constants[name] for name in names}
    constants |= {"ROWS": _rows_at_once(plan), "CELLS": width, "BLOCK_R": block_r, "BLOCK_L": block_l}
    many = lanes * numbers > _MANY and share.holds(lanes * numbers)
    if many and not torch.version.hip:  # whose compiler has no such option
        constants["maxnreg"] = share.registers
    return triton.cdiv(rows, block_r) * l_tiles, (rows, chunks, groups, steps), constants
