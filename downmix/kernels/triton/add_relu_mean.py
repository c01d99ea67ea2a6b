# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportOperatorIssue=false
"""The means of a map's channels on the GPU, or of a residual sum and its ReLU, written over the first summand."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._define import compute_dtype
from .._layouts import Layout, are_pixels, are_planes, blank, layout, remembered
from . import _common
from ._common import LOAD_BYTES, THREADS, TRITON_DTYPES, Launch, aligned, alignment, larger, power_of_two, shared_out
from ._pix_linear import MOST_PARTS

_SMALL = 256  # elements of a channel's map, of which torch's own mean takes too few at a time


@triton.jit
def _add_relu_mean_kernel(
    x_ptr, shortcut_ptr, mean_ptr, channels, space, parts, tiles,
    SUM: tl.constexpr, DTYPE: tl.constexpr, CHANNELS_INNER: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes ``tiles`` tiles of positions of some channels, and leaves what they add to the mean."""
    c_tiles = tl.cdiv(channels, BLOCK_C)
    row, c = tl.program_id(0) // c_tiles, tl.program_id(0) % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    b, part = (row // parts).to(tl.int64), row % parts
    if CHANNELS_INNER:
        c_exists, s_end = c < aligned(channels, ALIGN), space
    else:
        c_exists, s_end = c < channels, aligned(space, ALIGN)
    total = tl.zeros([BLOCK_S, BLOCK_C], DTYPE)
    for tile in range(tiles):
        s = (part * tiles + tile) * BLOCK_S + tl.arange(0, BLOCK_S)
        if CHANNELS_INNER:
            offsets = aligned((b * space + s) * channels, ALIGN)[:, None] + c[None, :]
        else:
            offsets = s[:, None] + aligned((b * channels + c) * space, ALIGN)[None, :]
        mask = (s < s_end)[:, None] & c_exists[None, :]
        value = tl.load(x_ptr + offsets, mask, other=0).to(DTYPE)
        if SUM:
            value = larger(value + tl.load(shortcut_ptr + offsets, mask, other=0).to(DTYPE), 0.0)
            tl.store(x_ptr + offsets, value.to(x_ptr.dtype.element_ty), mask)
        total += value
    result = tl.sum(total, 0) / space
    tl.store(mean_ptr + row.to(tl.int64) * channels + c, result.to(mean_ptr.dtype.element_ty), c < channels)


def why_not(x: Tensor, shortcut: Tensor | None) -> str | None:
    if shortcut is None:
        shortcut = x
        if not are_planes(x) or x.shape[2:].numel() > _SMALL:
            return "torch's own mean is as fast"
    if shortcut.dtype != x.dtype or x.dim() != 4 or shortcut.shape != x.shape:
        given = f"{x.dtype} of {list(x.shape)} and {shortcut.dtype} of {list(shortcut.shape)}"
        return f"the GPU kernel takes two maps [B, C, H, W] of one dtype and size, got {given}"
    if are_planes(x, shortcut) or are_pixels(x, shortcut):
        return _common.why_not(x=x)
    return "the GPU kernel takes two maps that are both contiguous or both channels_last"


def forward(x: Tensor, shortcut: Tensor | None) -> Tensor:
    if x.numel() == 0:
        return x.mean((2, 3))
    given = layout(x), None if shortcut is None else layout(shortcut)
    mean_layout, launch = forward_launch(*given, x.dtype)
    mean = blank(mean_layout, x.device)
    launch(x, x if shortcut is None else shortcut, mean)
    return mean.sum(1).to(x.dtype) if mean.dim() == 3 and mean.shape[1] > MOST_PARTS else mean


@remembered
def forward_launch(x_layout: Layout, shortcut_layout: Layout | None, dtype: torch.dtype) -> tuple[Layout, Launch]:
    """The layout of the mean, [B, C] of this dtype, or of parts that add up to it, [B, parts, C], and the launch."""
    x, shortcut = blank(x_layout), blank(shortcut_layout or x_layout)
    (batch, channels), space, channels_inner = x.shape[:2], x.shape[2] * x.shape[3], not are_planes(x, shortcut)
    block_s, block_c = _block(x, channels_inner, line=512)
    parts, tiles = _parts(x, block_s, block_c)
    if channels_inner and (parts > MOST_PARTS or tiles <= 2):
        # Of a small map fewer channels at more positions leave fewer parts; in a large one neighbours in memory had
        # better be read together.
        block_s, block_c = _block(x, channels_inner, line=128)
        parts, tiles = _parts(x, block_s, block_c)
    constants: dict[str, Any] = {
        "SUM": shortcut_layout is not None,
        "DTYPE": TRITON_DTYPES[compute_dtype(x)],
        "CHANNELS_INNER": channels_inner,
        "ALIGN": alignment(channels if channels_inner else space),
        "BLOCK_S": block_s,
        "BLOCK_C": block_c,
    }
    programs = batch * parts * triton.cdiv(channels, block_c)
    launch = Launch(_add_relu_mean_kernel, programs, (channels, space, parts, tiles), constants)
    if parts == 1:
        return ((batch, channels), (channels, 1), dtype), launch
    return ((batch, parts, channels), (parts * channels, channels, 1), compute_dtype(x)), launch


def _block(x: Tensor, channels_inner: bool, line: int) -> tuple[int, int]:
    """The positions and channels of a tile, in channels_last with so many bytes of channels, or all."""
    channels, space = x.shape[1], x.shape[2] * x.shape[3]
    elements = 2 * THREADS * LOAD_BYTES // x.element_size()  # two wide loads of each map for each thread
    if channels_inner:
        block_c = power_of_two(channels, line // x.element_size())
        return power_of_two(space, elements // block_c), block_c
    block_s = power_of_two(space, elements)
    return block_s, power_of_two(channels, elements // block_s)


def _parts(x: Tensor, block_s: int, block_c: int) -> tuple[int, int]:
    """The parts that the mean of a channel is left in, and the tiles of each: some more tiles if that avoids a sum."""
    s_tiles = triton.cdiv(x.shape[2] * x.shape[3], block_s)
    parts, tiles = shared_out(s_tiles, x.shape[0] * triton.cdiv(x.shape[1], block_c))
    fewest = triton.cdiv(s_tiles, MOST_PARTS)
    return (triton.cdiv(s_tiles, fewest), fewest) if tiles < fewest <= 4 else (parts, tiles)
