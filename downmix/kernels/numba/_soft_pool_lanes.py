"""The loops of SoftPool on the CPU. Many windows are done side by side, a lane each: the outputs of some rows (NCHW),
or the channels of some outputs (channels_last). Their elements are gathered into one row of lanes for each place in
the window, with −∞ for padding; all arithmetic then runs over whole rows of lanes and vectorises, whatever the stride.

Arguments: addresses, what types they hold, B, C, the geometry and the steps (see `soft_pool`).
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ._common import exp, first_half, memory, narrow, widen

_LANES = 256  # outputs at once in NCHW: whole rows, at least one
_CHANNELS = 32  # channels at once in channels_last


@njit(parallel=True, cache=True, error_model="numpy")
def forward_planes(x_at, y_at, element, pair, number, batch, channels, geometry, xs, ys):
    y = memory(y_at, element)
    rows, width, chunk, places = _plan(geometry)
    inside = _lanes_inside(geometry)
    for task in prange(batch * channels):
        b, c = task // channels, task % channels
        below, weights, tops, sums, means = _buffers(places, chunk * width, number)
        for first in range(0, rows, chunk):
            last = min(first + chunk, rows)
            _gather_rows(
                x_at + (b * xs[0] + c * xs[1]) * element.itemsize,
                element,
                pair,
                geometry,
                inside,
                xs,
                first,
                last,
                below,
            )
            _soften(below, weights, tops, sums, means, False)
            out = y[b * ys[0] + c * ys[1] + first * width :]
            for j in range((last - first) * width):
                out[j] = narrow(tops[j] + means[j], y)
    return y[0]


@njit(parallel=True, cache=True, error_model="numpy")
def forward_pixels(x_at, y_at, element, pair, number, batch, channels, geometry, xs, ys):
    y = memory(y_at, element)
    rows, width, _, places = _plan(geometry)
    chunk = max(1, _LANES // channels)
    for task in prange(batch * rows):
        b, od, oh = task // rows, task % rows // geometry[1, 1], task % geometry[1, 1]
        below, weights, tops, sums, means = _buffers(places, chunk * channels, number)
        for first in range(0, width, chunk):
            last = min(first + chunk, width)
            at = x_at + b * xs[0] * element.itemsize
            _gather_pixels(at, element, geometry, xs, od, oh, first, last, channels, below)
            _soften(below, weights, tops, sums, means, False)
            for ow in range(first, last):
                out = y[b * ys[0] + od * ys[2] + oh * ys[3] + ow * ys[4] :][:channels]
                lanes_at = (ow - first) * channels
                for j in range(channels):
                    out[j] = narrow(tops[lanes_at + j] + means[lanes_at + j], y)
    return y[0]


@njit(parallel=True, cache=True, error_model="numpy")
def backward_planes(grad_at, x_at, dx_at, element, pair, number, batch, channels, geometry, gs, xs, ds, exact):
    grad, dx = memory(grad_at, element), memory(dx_at, number)
    rows, width, chunk, places = _plan(geometry)
    inside = _lanes_inside(geometry)
    for task in prange(batch * channels):
        b, c = task // channels, task % channels
        below, weights, tops, sums, means = _buffers(places, chunk * width, number)
        above = np.zeros(chunk * width, number.dtype)
        plane = dx[b * ds[0] + c * ds[1] :]
        plane[: geometry[0].prod()] = number.dtype.type(0)
        for first in range(0, rows, chunk):
            last = min(first + chunk, rows)
            _gather_rows(
                x_at + (b * xs[0] + c * xs[1]) * element.itemsize,
                element,
                pair,
                geometry,
                inside,
                xs,
                first,
                last,
                below,
            )
            _soften(below, weights, tops, sums, means, True)
            incoming = grad[b * gs[0] + c * gs[1] + first * width :]
            for j in range((last - first) * width):
                above[j] = widen(incoming[j])
            _differentiate(below, weights, tops, sums, means, above, exact)
            _scatter_rows(plane, geometry, inside, first, last, below)
    return dx[0]


@njit(parallel=True, cache=True, error_model="numpy")
def backward_pixels(grad_at, x_at, dx_at, element, pair, number, batch, channels, geometry, gs, xs, ds, exact):
    grad, dx = memory(grad_at, element), memory(dx_at, number)
    sizes = geometry[0]
    rows, width, _, places = _plan(geometry)
    blocks = (channels + _CHANNELS - 1) // _CHANNELS
    for task in prange(batch * blocks):
        b, c = task // blocks, task % blocks * _CHANNELS
        n = min(_CHANNELS, channels - c)
        chunk = max(1, _LANES // n)
        below, weights, tops, sums, means = _buffers(places, chunk * n, number)
        above = np.zeros(len(tops), number.dtype)
        for i_d in range(sizes[0]):
            for i_h in range(sizes[1]):
                for i_w in range(sizes[2]):
                    at = b * ds[0] + c + i_d * ds[2] + i_h * ds[3] + i_w * ds[4]
                    dx[at : at + n] = number.dtype.type(0)
        for row in range(rows):
            od, oh = row // geometry[1, 1], row % geometry[1, 1]
            for first in range(0, width, chunk):
                last = min(first + chunk, width)
                at = x_at + (b * xs[0] + c) * element.itemsize
                _gather_pixels(at, element, geometry, xs, od, oh, first, last, n, below)
                _soften(below, weights, tops, sums, means, True)
                for ow in range(first, last):
                    incoming = grad[b * gs[0] + c + od * gs[2] + oh * gs[3] + ow * gs[4] :]
                    for j in range(n):
                        above[(ow - first) * n + j] = widen(incoming[j])
                _differentiate(below, weights, tops, sums, means, above, exact)
                _scatter_pixels(dx[b * ds[0] + c :], geometry, ds, od, oh, first, last, n, below)
    return dx[0]


@njit
def _plan(geometry):
    """Output rows, their width, how many are done at once, and places in a window."""
    width = geometry[1, 2]
    return geometry[1, 0] * geometry[1, 1], width, max(1, _LANES // width), geometry[2].prod()


@njit
def _buffers(places, lanes, number):
    # Whole vectors, as the rest of a row would be done lane by lane.
    lanes = (lanes + 15) // 16 * 16
    below, weights = np.full((places, lanes), -np.inf, number.dtype), np.empty((places, lanes), number.dtype)
    return below, weights, np.empty(lanes, number.dtype), np.empty(lanes, number.dtype), np.empty(lanes, number.dtype)


@njit
def _input(out, k, geometry, dim):
    return out * geometry[3, dim] - geometry[4, dim] + k * geometry[5, dim]


@njit
def _lanes_inside(geometry):
    """For each place kw of a row of a window, the outputs for which it lies inside the map, not in the padding."""
    size, out, kernel, stride, _, _ = geometry[:, 2]
    inside = np.empty((kernel, 2), np.intp)
    for kw in range(kernel):
        before = -_input(0, kw, geometry, 2)
        inside[kw, 0] = min(out, max(0, (before + stride - 1) // stride))
        inside[kw, 1] = max(inside[kw, 0], min(out, (size + before + stride - 1) // stride))
    return inside


@njit
def _gather_rows(at, element, pair, geometry, inside, xs, first, last, below):
    sizes, outs, kernel, stride, _, _ = geometry
    width, step, step_d, step_h = outs[2], stride[2], xs[2], xs[3]
    for row in range(first, last):
        od, oh, lanes_at, place = row // outs[1], row % outs[1], (row - first) * width, 0
        for kd in range(kernel[0]):
            i_d = _input(od, kd, geometry, 0)
            for kh in range(kernel[1]):
                i_h = _input(oh, kh, geometry, 1)
                for kw in range(kernel[2]):
                    start, stop = 0, 0
                    if 0 <= i_d < sizes[0] and 0 <= i_h < sizes[1]:
                        start, stop = inside[kw, 0], inside[kw, 1]
                        offset = i_d * step_d + i_h * step_h + _input(start, kw, geometry, 2)
                        target = below.ctypes.data + (place * below.shape[1] + lanes_at + start) * below.itemsize
                        paired = _input(stop - 1, kw, geometry, 2) + 1 < sizes[2]
                        _copy(at + offset * element.itemsize, element, pair, paired, step, target, below, stop - start)
                    for j in range(lanes_at, lanes_at + start):
                        below[place, j] = -np.inf
                    for j in range(lanes_at + stop, lanes_at + width):
                        below[place, j] = -np.inf
                    place += 1


@njit
def _copy(at, element, pair, paired, step, lanes_at, number, n):
    """Widens n elements, a step apart. Addresses, as a view of an array counts references, one atomic step each."""
    source, lanes = memory(at, element), memory(lanes_at, number)
    if step == 1:
        for j in range(n):
            lanes[np.uintp(j)] = widen(source[np.uintp(j)])
    elif step == 2 and pair.itemsize > element.itemsize:
        # LLVM does not vectorise a step of 2 between arrays that could overlap, but it does read whole pairs and keep
        # their first half. The last has a second half, `paired`, unless the map ends before.
        pairs = memory(at, pair)
        for j in range(n if paired else n - 1):
            lanes[np.uintp(j)] = widen(first_half(pairs[np.uintp(j)], element))
        if n > 0 and not paired:
            lanes[n - 1] = widen(source[2 * (n - 1)])
    else:
        for j in range(n):
            lanes[np.uintp(j)] = widen(source[np.uintp(step) * np.uintp(j)])


@njit
def _gather_pixels(at, element, geometry, xs, od, oh, first, last, n, below):
    sizes, _, kernel, _, _, _ = geometry
    place = 0
    for kd in range(kernel[0]):
        i_d = _input(od, kd, geometry, 0)
        for kh in range(kernel[1]):
            i_h = _input(oh, kh, geometry, 1)
            for kw in range(kernel[2]):
                for ow in range(first, last):
                    i_w, lanes_at = _input(ow, kw, geometry, 2), (ow - first) * n
                    if 0 <= i_d < sizes[0] and 0 <= i_h < sizes[1] and 0 <= i_w < sizes[2]:
                        offset = i_d * xs[2] + i_h * xs[3] + i_w * xs[4]
                        target = below.ctypes.data + (place * below.shape[1] + lanes_at) * below.itemsize
                        _copy(at + offset * element.itemsize, element, element, False, 1, target, below, n)
                    else:
                        for j in range(lanes_at, lanes_at + n):
                            below[place, j] = -np.inf
                place += 1


@njit(error_model="numpy", fastmath={"contract"})
def _soften(below, weights, tops, sums, means, keep):
    """From the elements a: m, Σ e^{a − m}, and Σ w (a − m). With ``keep``, for the backward pass, `weights` gets
    e^{a − m} and `below` becomes a − m."""
    lanes = len(tops)
    zero = tops.dtype.type(0)
    for j in range(lanes):
        tops[j] = below[0, j]
    for place in range(1, len(below)):
        for j in range(lanes):
            value = below[place, j]
            tops[j] = value if (value > tops[j] or value != value) else tops[j]
    sums[:] = zero
    means[:] = zero
    for place in range(len(below)):
        if keep:
            for j in range(lanes):
                difference, weight = exp(below[place, j] - tops[j])
                below[place, j] = difference
                weights[place, j] = weight
                sums[j] += weight
                means[j] += weight * difference
        else:
            for j in range(lanes):
                difference, weight = exp(below[place, j] - tops[j])
                sums[j] += weight
                means[j] += weight * difference
    for j in range(lanes):
        # An infinite maximum is the output itself.
        mean = means[j] / sums[j]
        means[j] = zero if np.isinf(tops[j]) else mean


@njit(error_model="numpy", fastmath={"contract"})
def _differentiate(below, weights, tops, sums, means, above, exact):
    """`below` becomes g·w (1 + a − y), or g·w; nothing flows where the maximum is infinite."""
    lanes = len(tops)
    zero, one = tops.dtype.type(0), tops.dtype.type(1)
    slope = one if exact else zero
    for j in range(lanes):
        share = above[j] / sums[j]
        sums[j] = zero if np.isinf(tops[j]) else share
        means[j] = one - slope * means[j]
    for place in range(len(below)):
        for j in range(lanes):
            gradient = sums[j] * weights[place, j] * (means[j] + slope * below[place, j])
            below[place, j] = gradient if sums[j] != zero else zero


@njit
def _scatter_rows(plane, geometry, inside, first, last, gradients):
    sizes, outs, kernel, stride, _, _ = geometry
    width, step = outs[2], np.uintp(stride[2])
    for row in range(first, last):
        od, oh, lanes_at, place = row // outs[1], row % outs[1], (row - first) * width, 0
        for kd in range(kernel[0]):
            i_d = _input(od, kd, geometry, 0)
            for kh in range(kernel[1]):
                i_h = _input(oh, kh, geometry, 1)
                for kw in range(kernel[2]):
                    if 0 <= i_d < sizes[0] and 0 <= i_h < sizes[1]:
                        start, stop = inside[kw, 0], inside[kw, 1]
                        target = plane[(i_d * sizes[1] + i_h) * sizes[2] + _input(start, kw, geometry, 2) :]
                        source = (
                            gradients.ctypes.data + (place * gradients.shape[1] + lanes_at + start) * gradients.itemsize
                        )
                        _add(source, gradients, stop - start, target, step)
                    place += 1


@njit
def _add(lanes_at, number, n, target, step):
    lanes = memory(lanes_at, number)
    if step == 1:
        for j in range(n):
            target[np.uintp(j)] += lanes[np.uintp(j)]
    else:
        for j in range(n):
            target[step * np.uintp(j)] += lanes[np.uintp(j)]


@njit
def _scatter_pixels(dx, geometry, ds, od, oh, first, last, n, gradients):
    sizes, _, kernel, _, _, _ = geometry
    place = 0
    for kd in range(kernel[0]):
        i_d = _input(od, kd, geometry, 0)
        for kh in range(kernel[1]):
            i_h = _input(oh, kh, geometry, 1)
            for kw in range(kernel[2]):
                for ow in range(first, last):
                    i_w, lanes_at = _input(ow, kw, geometry, 2), (ow - first) * n
                    if 0 <= i_d < sizes[0] and 0 <= i_h < sizes[1] and 0 <= i_w < sizes[2]:
                        target = dx[i_d * ds[2] + i_h * ds[3] + i_w * ds[4] :]
                        source = gradients.ctypes.data + (place * gradients.shape[1] + lanes_at) * gradients.itemsize
                        _add(source, gradients, n, target, np.uintp(1))
                place += 1
