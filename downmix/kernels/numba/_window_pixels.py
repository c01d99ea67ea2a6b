"""Pooling where each pixel's channels are a run of memory (channels_last): a lane is a channel of one output.

Forward a task is a row of outputs of one sample; backward, where windows add up, some channels of one sample. Forward
kernels are made for the usual windows, whose walk then is unrolled.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from ._common import ELEMENT, compiled_for, memory
from ._launch import arguments, kernel, number_from, tasks
from ._vector_memory import add, clear, load, store
from ._vectors import all_lanes, lanes_between, spread
from ._window_memory import all_inside, clip, registers
from ._window_walker import Method, ask_ahead, share_out, walk

reduce: Any = None  # a method's own take the places of these
gradients: Any = None
give: Any = None


def channels_a_task(batch: int, channels: int) -> int:
    """All, which are one run of memory, unless that leaves too few tasks to share among threads."""
    return channels if batch >= 8 else 64


@functools.cache
def forward(method: Method, window: tuple[int, ...], element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any."""
    second = ELEMENT[number if method.other == "outputs" else element]
    element, number, lanes, real = compiled_for(element, number)
    depth, height, width = window

    @kernel(method.name, reduce=method.reduce)
    def run(at):
        (
            x_at, other_at, y_at, parameter, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW,
            LD, LH, LW, xb, xd, xh, xw,
        ) = arguments(at, 27)  # fmt: skip
        tensors, y = (memory(x_at, element), memory(other_at, second)), memory(y_at, element)
        zero, one, parameter = spread(real(0)), spread(real(1)), spread(real(number_from(parameter)))
        constants = zero, spread(real(-np.inf)), one, spread(real(np.nan)), parameter
        kept, steps, edges = memory(0, number), (LD * xd, LH * xh, LW * xw), (0, 0, 0, 0)
        if depth:
            KD, KH, KW = depth, height, width
        for task in tasks(at):
            b, row = task // (OD * OH), task % (OD * OH)
            i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
            (d0, d1), (h0, h1) = clip(i_d, D, KD, LD), clip(i_h, H, KH, LH)
            for ow in range(OW):
                i_w, out = ow * SW - PW, (task * OW + ow) * channels
                w0, w1 = clip(i_w, W, KW, LW)
                whole = all_inside((d0, d1, h0, h1), KD, KH) and w1 - w0 == KW
                start = b * xb + i_d * xd + i_h * xh + i_w * xw
                # A loop of their own leaves vectors of whole windows all registers.
                done = channels // lanes * lanes if whole else 0
                for c in range(0, done, lanes):
                    mask = all_lanes(number)
                    places = start + c, (0, KD, 0, KH, 0, KW), steps, edges, mask
                    walk(ask_ahead, 0, tensors, places, 1, False, kept, False, constants)
                    found = reduce(tensors, out + c, places, 1, False, kept, False, constants)
                    store(y, out + c, found[0], mask)
                for c in range(done, channels, lanes):
                    mask = lanes_between(number, 0, channels - c)
                    places = start + c, (d0, d1, h0, h1, w0, w1), steps, edges, mask
                    found = reduce(tensors, out + c, places, 1, False, kept, False, constants)
                    store(y, out + c, found[0], mask)

    return run


@functools.cache
def backward(method: Method, window: tuple[int, ...], tiles: bool, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any. Where windows tile the map, each pixel is written once; else
    gradients add up, in numbers to compute with."""
    second = ELEMENT[number if method.other == "outputs" else element]
    element, number, lanes, real = compiled_for(element, number)
    count = 2 if method.other == "values" else 1
    depth, height, width = window
    few, result = 2 * lanes * depth * height * width or 1, element if tiles else number

    @kernel(method.name, reduce=method.reduce, gradients=method.gradients, give=store if tiles else add)
    def run(at):
        (
            grad_at, x_at, other_at, dx_at, dother_at, parameter, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW,
            PD, PH, PW, LD, LH, LW, xb, xd, xh, xw, block,
        ) = arguments(at, 30)  # fmt: skip
        grad, tensors = memory(grad_at, element), (memory(x_at, element), memory(other_at, second))
        targets = memory(dx_at, result), memory(dother_at, result)
        zero, one, parameter = spread(real(0)), spread(real(1)), spread(real(number_from(parameter)))
        constants = zero, spread(real(-np.inf)), one, spread(real(np.nan)), parameter
        kept_array, edges = np.empty(2 * lanes * KD * KH * KW, number.dtype), (0, 0, 0, 0)
        kept = memory(kept_array.ctypes.data, number)
        near = registers(number, few) if depth else kept
        steps = LD * xd, LH * xh, LW * xw
        target_steps = LD * H * W * channels, LH * W * channels, LW * channels
        blocks = (channels + block - 1) // block
        if depth:
            KD, KH, KW = depth, height, width
        for task in tasks(at):
            b, first = task // blocks, task % blocks * block
            last = min(first + block, channels)
            for t in range(0 if tiles else count):
                target = memory(dother_at if t else dx_at, result)
                clear_channels(target, b * D * H * W, (b + 1) * D * H * W, channels, first, last)
            for o in range(OD * OH * OW):
                i_d, i_h, i_w = o // (OH * OW) * SD - PD, o // OW % OH * SH - PH, o % OW * SW - PW
                (d0, d1), (h0, h1), (w0, w1) = clip(i_d, D, KD, LD), clip(i_h, H, KH, LH), clip(i_w, W, KW, LW)
                whole = all_inside((d0, d1, h0, h1), KD, KH) and w1 - w0 == KW
                out, start = (b * OD * OH * OW + o) * channels, b * xb + i_d * xd + i_h * xh + i_w * xw
                target_start = (((b * D + i_d) * H + i_h) * W + i_w) * channels
                for c in range(first, last, lanes):
                    at_edge = True
                    if depth:  # noqa: SIM102, alone it keeps what is below from the compiler
                        if whole and c + lanes <= last:
                            mask, inside = all_lanes(number), (0, KD, 0, KH, 0, KW)
                            places = start + c, inside, steps, edges, mask
                            target_places = target_start + c, inside, target_steps, edges, mask
                            found = reduce(tensors, out + c, places, 1, False, near, True, constants)
                            incoming = load(grad, out + c, mask)
                            share_out(gradients, give, targets, target_places, near, found, incoming, count, constants)
                            at_edge = False
                    if at_edge:
                        mask, inside = lanes_between(number, 0, last - c), (d0, d1, h0, h1, w0, w1)
                        places = start + c, inside, steps, edges, mask
                        target_places = target_start + c, inside, target_steps, edges, mask
                        found = reduce(tensors, out + c, places, 1, False, kept, True, constants)
                        incoming = load(grad, out + c, mask)
                        share_out(gradients, give, targets, target_places, kept, found, incoming, count, constants)
        kept_array[0] = 0  # lives until here

    return run


@njit(inline="always")
def clear_channels(target, first_pixel, end, channels, first, last):
    """Writes zeros to some channels of a run of pixels."""
    if last - first == channels:
        clear(target, first_pixel * channels, (end - first_pixel) * channels)
    else:
        for pixel in range(first_pixel, end):
            clear(target, pixel * channels + first, last - first)
