"""Pooling where rows are runs of memory (NCHW): a task is one channel of one sample, a lane an output of a row.

Kernels are made for one stride along a row, 1, 2, or with 0 for any, and forward for the usual windows, whose walk then
is unrolled. An output vector whose windows all lie inside the map needs no masks.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ._common import ELEMENT, memory
from ._launch import arguments, kernel, number_from, tasks
from ._vector_memory import clear, load, store
from ._vectors import all_lanes, lanes_between, spread
from ._window_memory import clip
from ._window_walker import Method, share_out

reduce: Any = None  # a method's own take the places of these
gradients: Any = None


@functools.cache
def forward(method: Method, window: tuple[int, ...], lane_step: int, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any."""
    second = ELEMENT[number if method.other == "outputs" else element]
    element, number = ELEMENT[element], ELEMENT[number]
    lanes, real = 64 // number.itemsize, number.dtype.type
    depth, height, width = window

    @kernel(method.name, reduce=method.reduce)
    def run(at):
        (
            x_at, other_at, y_at, parameter, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW,
            LD, LH, LW, xb, xc, xd, xh,
        ) = arguments(at, 27)  # fmt: skip
        tensors, y = (memory(x_at, element), memory(other_at, second)), memory(y_at, element)
        zero, one, parameter = spread(real(0)), spread(real(1)), spread(real(number_from(parameter)))
        constants = zero, spread(real(-np.inf)), one, spread(real(np.nan)), parameter
        kept, steps = np.empty(0, number.dtype), (LD * xd, LH * xh, LW)
        if depth:
            KD, KH, KW = depth, height, width
        for task in tasks(at):
            base = task // channels * xb + task % channels * xc
            for row in range(OD * OH):
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                (d0, d1), (h0, h1) = clip(i_d, D, KD, LD), clip(i_h, H, KH, LH)
                rows_inside = d1 - d0 == KD and h1 - h0 == KH
                out = (task * OD * OH + row) * OW
                for v in range(0, OW, lanes):
                    # The last vector starts early, so that it is whole: some outputs are computed twice.
                    j = max(0, min(v, OW - lanes))
                    left = j * SW - PW
                    start, edges = base + i_d * xd + i_h * xh + left, (left, W, SW, LW)
                    if rows_inside and left >= 0 and j + lanes <= OW and left + (lanes - 1) * SW + (KW - 1) * LW < W:
                        mask = all_lanes(number)
                        places = start, (0, KD, 0, KH, 0, KW), steps, edges, mask
                        found = reduce(tensors, out + j, places, lane_step, False, kept, False, constants)
                        store(y, out + j, found[0], mask)
                    else:
                        mask = lanes_between(number, 0, OW - j)
                        places = start, (d0, d1, h0, h1, 0, KW), steps, edges, mask
                        found = reduce(tensors, out + j, places, lane_step, True, kept, False, constants)
                        store(y, out + j, found[0], mask)

    return run


@functools.cache
def backward(method: Method, lane_step: int, element: Any, number: Any) -> Any:
    """Adds up the gradients in numbers to compute with."""
    second = ELEMENT[number if method.other == "outputs" else element]
    element, number = ELEMENT[element], ELEMENT[number]
    lanes, real, two = 64 // number.itemsize, number.dtype.type, method.other == "values"

    @kernel(method.name, reduce=method.reduce, gradients=method.gradients)
    def run(at):
        (
            grad_at, x_at, other_at, dx_at, dother_at, parameter, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW,
            PD, PH, PW, LD, LH, LW, xb, xc, xd, xh, _,
        ) = arguments(at, 30)  # fmt: skip
        grad, tensors = memory(grad_at, element), (memory(x_at, element), memory(other_at, second))
        targets = memory(dx_at, number), memory(dother_at, number)
        zero, one, parameter = spread(real(0)), spread(real(1)), spread(real(number_from(parameter)))
        constants = zero, spread(real(-np.inf)), one, spread(real(np.nan)), parameter
        kept = np.empty(2 * lanes * KD * KH * KW, number.dtype)
        steps, dsteps = (LD * xd, LH * xh, LW), (LD * H * W, LH * W, LW)
        for task in tasks(at):
            base, dbase = task // channels * xb + task % channels * xc, task * D * H * W
            clear(targets[0], dbase, D * H * W)
            if two:
                clear(targets[1], dbase, D * H * W)
            for row in range(OD * OH):
                i_d, i_h = row // OH * SD - PD, row % OH * SH - PH
                (d0, d1), (h0, h1) = clip(i_d, D, KD, LD), clip(i_h, H, KH, LH)
                out, inside = (task * OD * OH + row) * OW, (d0, d1, h0, h1, 0, KW)
                for j in range(0, OW, lanes):
                    left = j * SW - PW
                    start, edges = base + i_d * xd + i_h * xh + left, (left, W, SW, LW)
                    dstart = dbase + i_d * H * W + i_h * W + left
                    if left >= 0 and j + lanes <= OW and left + (lanes - 1) * SW + (KW - 1) * LW < W:
                        mask = all_lanes(number)
                        places, dplaces = (start, inside, steps, edges, mask), (dstart, inside, dsteps, edges, mask)
                        found = reduce(tensors, out + j, places, lane_step, False, kept, True, constants)
                        incoming = load(grad, out + j, mask)
                        share_out(gradients, targets, dplaces, lane_step, False, kept, found, incoming, two, constants)
                    else:
                        mask = lanes_between(number, 0, OW - j)
                        places, dplaces = (start, inside, steps, edges, mask), (dstart, inside, dsteps, edges, mask)
                        found = reduce(tensors, out + j, places, lane_step, True, kept, True, constants)
                        incoming = load(grad, out + j, mask)
                        share_out(gradients, targets, dplaces, lane_step, True, kept, found, incoming, two, constants)

    return run
