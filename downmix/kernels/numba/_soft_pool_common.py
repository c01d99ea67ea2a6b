"""What both layouts of SoftPool share. Many windows are done side by side, a lane each: neighbouring outputs of a row
(NCHW), or channels of one output (channels_last). A window is walked twice, for its maximum and for the sums.

How a window lies in memory: ``ranges``, from where to where its places run in D, H and W; ``steps`` between them; and
for NCHW ``edges``, by which the lanes are found whose place lies in the map, not in the padding: the input index of the
first lane's window, the map's width, stride and dilation.
"""

from numba import njit

from ._vector_memory import add_every_second, load, load_every_second, load_steps, store, store_steps
from ._vectors import all_lanes, choose, exp, is_infinite, is_nan, lanes_between, larger


@njit(inline="always")
def clip(start, size, count, dilation):
    """Which of ``count`` places, a dilation apart from ``start`` on, lie in the map."""
    return max(0, -(start // dilation)), max(0, min(count, -((start - size) // dilation)))


@njit(inline="always")
def soften(x, at, ranges, steps, edges, lane_step, padded, mask, constants, kept, keep):
    """m, Σ e^{a − m} and Σ w (a − m) of the window at ``at``. With ``keep``, `kept` gets a − m and e^{a − m}."""
    d0, d1, h0, h1, w0, w1 = ranges
    step_d, step_h, step_w = steps
    zero, lowest, nan = constants
    tops, nans = lowest, is_nan(zero)
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            for kw in range(w0, w1):
                here = _inside(kw, edges, lane_step, padded, mask, kept)
                value = _read(x, at + kd * step_d + kh * step_h + kw * step_w, edges, lane_step, here)
                value = choose(here, value, lowest)
                tops, nans = larger(tops, value), nans | is_nan(value)
    tops = choose(nans, nan, tops)
    sums, means, n = zero, zero, 0
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            row_sums, row_means = zero, zero  # added up row by row, as one long sum would round worse
            for kw in range(w0, w1):
                here = _inside(kw, edges, lane_step, padded, mask, kept)
                value = _read(x, at + kd * step_d + kh * step_h + kw * step_w, edges, lane_step, here)
                difference, weight = exp(choose(here, value, lowest) - tops)
                row_sums, row_means = row_sums + weight, row_means + weight * difference
                if keep:
                    store(kept, n, difference, all_lanes(kept))
                    store(kept, n + 64 // kept.itemsize, weight, all_lanes(kept))
                    n += 128 // kept.itemsize
            sums, means = sums + row_sums, means + row_means
    # An infinite maximum is the output itself.
    return tops, sums, choose(is_infinite(tops), zero, means / sums)


@njit(inline="always")
def share_out(dx, at, ranges, steps, edges, lane_step, padded, mask, kept, softened, incoming, slope, one, zero):
    """Adds g·w (1 + a − y), or with slope 0 g·w, to dx; nothing where the maximum is infinite."""
    d0, d1, h0, h1, w0, w1 = ranges
    step_d, step_h, step_w = steps
    tops, sums, mean = softened
    infinite, share, rest, n = is_infinite(tops), incoming / sums, one - slope * mean, 0
    for kd in range(d0, d1):
        for kh in range(h0, h1):
            for kw in range(w0, w1):
                difference = load(kept, n, all_lanes(kept))
                weight = load(kept, n + 64 // kept.itemsize, all_lanes(kept))
                n += 128 // kept.itemsize
                gradient = choose(infinite, zero, share * weight * (rest + slope * difference))
                here = _inside(kw, edges, lane_step, padded, mask, kept)
                place = at + kd * step_d + kh * step_h + kw * step_w
                if lane_step == 1:
                    store(dx, place, load(dx, place, here) + gradient, here)
                elif lane_step == 2:
                    add_every_second(dx, place, gradient, here)
                else:
                    stride = edges[2]
                    store_steps(dx, place, stride, load_steps(dx, place, stride, here) + gradient, here)


@njit(inline="always")
def _inside(kw, edges, lane_step, padded, mask, number):
    if not padded:
        return mask
    left, size, stride, dilation = edges
    step = lane_step if lane_step else stride
    first = left + kw * dilation
    return mask & lanes_between(number, -(first // step), -((first - size) // step))


@njit(inline="always")
def _read(x, at, edges, lane_step, mask):
    if lane_step == 1:
        return load(x, at, mask)
    if lane_step == 2:
        return load_every_second(x, at, mask)
    return load_steps(x, at, edges[2], mask)
