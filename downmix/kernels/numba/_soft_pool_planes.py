"""SoftPool where rows are runs of memory (NCHW): a task is one channel of one sample, a lane an output of a row.

Kernels are made for one stride along a row, 1, 2, or with 0 for any, and forward for the usual windows, whose walk then
is unrolled. An output vector whose windows all lie inside the map needs no masks.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ._common import ELEMENT, memory
from ._launch import arguments, kernel, tasks
from ._soft_pool_common import clip, share_out, soften
from ._vector_memory import load, store
from ._vectors import all_lanes, lanes_between, spread


@functools.cache
def forward(window: tuple[int, ...], lane_step: int, element: Any, number: Any) -> Any:
    """The kernel for one window, or with zeros for any."""
    element, number = ELEMENT[element], ELEMENT[number]
    lanes, real = 64 // number.itemsize, number.dtype.type
    depth, height, width = window

    @kernel()
    def run(at):
        (
            x_at, y_at, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW, LD, LH, LW, xb, xc, xd, xh,
        ) = arguments(at, 25)  # fmt: skip
        x, y = memory(x_at, element), memory(y_at, element)
        constants = spread(real(0)), spread(real(-np.inf)), spread(real(np.nan))
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
                        tops, _, mean = soften(
                            x,
                            start,
                            (0, KD, 0, KH, 0, KW),
                            steps,
                            edges,
                            lane_step,
                            False,
                            mask,
                            constants,
                            kept,
                            False,
                        )
                        store(y, out + j, tops + mean, mask)
                    else:
                        mask = lanes_between(number, 0, OW - j)
                        tops, _, mean = soften(
                            x,
                            start,
                            (d0, d1, h0, h1, 0, KW),
                            steps,
                            edges,
                            lane_step,
                            True,
                            mask,
                            constants,
                            kept,
                            False,
                        )
                        store(y, out + j, tops + mean, mask)

    return run


@functools.cache
def backward(lane_step: int, element: Any, number: Any) -> Any:
    """Adds up dx in numbers to compute with."""
    element, number = ELEMENT[element], ELEMENT[number]
    lanes, real = 64 // number.itemsize, number.dtype.type

    @kernel()
    def run(at):
        (
            grad_at, x_at, dx_at, exact, channels, D, H, W, OD, OH, OW, KD, KH, KW, SD, SH, SW, PD, PH, PW, LD, LH, LW,
            xb, xc, xd, xh, _,
        ) = arguments(at, 28)  # fmt: skip
        grad, x, dx = memory(grad_at, element), memory(x_at, element), memory(dx_at, number)
        zero, one, slope = spread(real(0)), spread(real(1)), spread(real(exact))
        constants = zero, spread(real(-np.inf)), spread(real(np.nan))
        kept = np.empty(2 * lanes * KD * KH * KW, number.dtype)
        steps, dsteps = (LD * xd, LH * xh, LW), (LD * H * W, LH * W, LW)
        for task in tasks(at):
            base, dbase = task // channels * xb + task % channels * xc, task * D * H * W
            dx[dbase : dbase + D * H * W] = real(0)
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
                        softened = soften(x, start, inside, steps, edges, lane_step, False, mask, constants, kept, True)
                        incoming = load(grad, out + j, mask)
                        share_out(
                            dx, dstart, inside, dsteps, edges, lane_step, False, mask, kept, softened, incoming,
                            slope, one, zero,
                        )  # fmt: skip
                    else:
                        mask = lanes_between(number, 0, OW - j)
                        softened = soften(x, start, inside, steps, edges, lane_step, True, mask, constants, kept, True)
                        incoming = load(grad, out + j, mask)
                        share_out(
                            dx, dstart, inside, dsteps, edges, lane_step, True, mask, kept, softened, incoming,
                            slope, one, zero,
                        )  # fmt: skip

    return run
