# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false
"""Triton kernels of soft_pool for windows of one or two dimensions that overlap: x is read once, and written once.

A lane walks down the rows of windows, CELLS of them side by side, and keeps in registers what the next rows share with
these: sums along rows, in backward also its own elements and sums of their gradients. There it also computes the
windows that reach into its own columns from both sides, rather than wait for a neighbour. A cell is what lies between
the starts of two windows. Windows that are not calm (`_calm.py`) take a second walk, in which each has its own maximum.
"""

import triton
import triton.language as tl

from ._calm import (
    add_gradients,
    along_rows,
    center_of,
    down_rows,
    extended,
    for_columns,
    inverse_of,
    is_restless,
    is_steep,
    weighted,
)
from ._common import larger
from ._lanes import lanes_of, load_middle, load_row, load_rows, pointers_to, rows_down, store_row
from ._softmax import below, element_gradient, exp, for_elements


@triton.jit
def _soften(values, FIRST: tl.constexpr, COLS: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr):
    """For the window that starts at values[FIRST]: m = max a, Σ e^(a − m), Σ e^(a − m) (a − m), and both factors."""
    top = values[FIRST]
    for k in tl.static_range(1, K_H * K_W):
        top = larger(top, values[FIRST + k // K_W * COLS + k % K_W])
    total, mean = tl.zeros_like(top), tl.zeros_like(top)
    weights, belows = (), ()
    for k in tl.static_range(K_H * K_W):
        a = below(values[FIRST + k // K_W * COLS + k % K_W], top)
        weight = exp(a)
        total += weight
        mean += weight * a
        weights, belows = weights + (weight,), belows + (a,)
    return top, total, mean, weights, belows


@triton.jit
def _forward(
    program, x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, CALM: tl.constexpr, ROWS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, X_STEP: tl.constexpr, Y_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """All rows of a program, ROWS of windows at a time; where CALM, it says which lanes have windows that are not."""
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    KEPT: tl.constexpr = K_H - S_H
    FINE: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth > 16
    FIRST: tl.constexpr = -PADDING[2]
    COLS: tl.constexpr = (CELLS - 1) * S_W + K_W
    _rows, _chunks, _groups, steps = counts
    _channels, _depth, height, width = sizes
    b, c, d, chunk, group, exists = lanes_of(program, counts, sizes, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L)
    y_h, y_w = chunk * steps, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W
    x_ptr = pointers_to(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    y_ptr = pointers_to(y_ptr, y_strides, b, c, d, y_h, y_w, CHANNELS_INNER, Y_ALIGN)
    kept = load_rows(x_ptr, x_strides, h, w, height, width, exists, KEPT, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN)
    middle = load_middle(
        x_ptr, x_strides, h, w, height, width, exists, K_H // 2, FIRST, K_W, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    center = center_of(middle)
    values, weights = weighted(kept, center)
    tops, totals, means = along_rows(values, weights, center, FINE, KEPT, COLS, CELLS, S_W, K_W)
    least, most = tl.full([BLOCK_R, BLOCK_L], 1.0, DTYPE), tl.full([BLOCK_R, BLOCK_L], 1.0, DTYPE)
    for _ in range(0, steps, ROWS):
        fresh = load_rows(
            x_ptr + rows_down(x_strides, KEPT, X_ALIGN), x_strides, h + KEPT, w, height, width, exists,
            ROWS * S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
        )  # fmt: skip
        outputs = ()
        if CALM:
            more_values, more_weights = weighted(fresh, center)
            m, u, v = along_rows(more_values, more_weights, center, FINE, ROWS * S_H, COLS, CELLS, S_W, K_W)
            tops, totals, means = tops + m, totals + u, means + v
            m, u, v = down_rows(tops, totals, means, center, FINE, ROWS, CELLS, S_H, K_H)
            for i in tl.static_range(ROWS * CELLS):
                outputs = outputs + (m[i] + v[i] * inverse_of(u[i]),)
                here = (y_h + i // CELLS < out_sizes[2]) & (y_w + i % CELLS < out_sizes[3])
                least, most = extended(least, most, u[i], exists & here[:, None])
            tops, totals = tops[ROWS * S_H * CELLS :], totals[ROWS * S_H * CELLS :]
            means = means[ROWS * S_H * CELLS :]
        else:
            for n in tl.static_range(CELLS):
                top, total, mean, _weights, _belows = _soften(kept + fresh, n * S_W, COLS, K_H, K_W)
                outputs = outputs + (tl.where(tl.abs(top) == float("inf"), top, top + mean / total),)
            kept = (kept + fresh)[S_H * COLS :]
        for i in tl.static_range(ROWS):
            inside = exists & (y_h + i < out_sizes[2])[:, None]
            row = y_ptr + rows_down(y_strides, i, Y_ALIGN)
            store_row(row, outputs[i * CELLS : (i + 1) * CELLS], y_w, out_sizes[3], inside, CELLS, Y_STEP, Y_VECTOR)
        y_h += ROWS
        h += ROWS * S_H
        x_ptr += rows_down(x_strides, ROWS * S_H, X_ALIGN)
        y_ptr += rows_down(y_strides, ROWS, Y_ALIGN)
    return is_restless(least, most)


@triton.jit
def soft_pool_rows_forward_kernel(
    x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, ROWS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, X_STEP: tl.constexpr, Y_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    restless = _forward(
        tl.program_id(0), x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, True, ROWS,
        KERNEL, STRIDE, PADDING, CELLS, DTYPE, INDEX, CHANNELS_INNER, VECTOR, Y_VECTOR, X_STEP, Y_STEP,
        X_ALIGN, Y_ALIGN, BLOCK_R, BLOCK_L,
    )  # fmt: skip
    found = tl.max(tl.max(restless.to(tl.int32), 1), 0)
    if found > 0:
        _forward(
            _again(found), x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, False, 1,
            KERNEL, STRIDE, PADDING, CELLS, DTYPE, INDEX, CHANNELS_INNER, VECTOR, Y_VECTOR, X_STEP, Y_STEP,
            X_ALIGN, Y_ALIGN, BLOCK_R, BLOCK_L,
        )  # fmt: skip


@triton.jit
def _again(found):
    """The program, as if it depended on what was found, which is 1: else the compiler would keep in registers, through
    all of the first walk, where the second begins."""
    return tl.program_id(0) + (found - 1)


@triton.jit
def _backward(
    program, grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
    CALM: tl.constexpr, ROWS: tl.constexpr, EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    CELLS: tl.constexpr, LEFT: tl.constexpr, WINDOWS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
    X_STEP: tl.constexpr, GRAD_STEP: tl.constexpr, DX_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """All rows of a program, ROWS of windows at a time; where CALM, it says which lanes have windows that are not.

    LEFT is the first window that reaches into a lane's own columns, from its first cell on, and WINDOWS how many do.
    """
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    OWN: tl.constexpr = CELLS * S_W
    KEPT: tl.constexpr = K_H - S_H
    FINE: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth > 16
    ABOVE: tl.constexpr = (K_H - 1) // S_H  # rows of windows above a cell that reach into it
    FIRST: tl.constexpr = LEFT * S_W - PADDING[2]
    COLS: tl.constexpr = (WINDOWS - 1) * S_W + K_W
    _rows, _chunks, _groups, steps = counts
    _channels, _depth, height, width = sizes
    b, c, d, chunk, group, exists = lanes_of(program, counts, sizes, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L)
    y_h, y_w = chunk * steps - ABOVE, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W
    x_ptr = pointers_to(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    dx_ptr = pointers_to(dx_ptr, dx_strides, b, c, d, h, w, CHANNELS_INNER, DX_ALIGN)
    grad_ptr = pointers_to(grad_ptr, grad_strides, b, c, d, y_h, y_w, CHANNELS_INNER, GRAD_ALIGN)
    kept = load_rows(x_ptr, x_strides, h, w, height, width, exists, KEPT, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN)
    middle = load_middle(
        x_ptr, x_strides, h, w, height, width, exists, ABOVE * S_H + K_H // 2, -PADDING[2], K_W,
        X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    center = center_of(middle)
    values, weights = weighted(kept, center)
    tops, totals, means = along_rows(values, weights, center, FINE, KEPT, COLS, WINDOWS, S_W, K_W)
    values, weights = _own(values, KEPT, COLS, OWN, FIRST), _own(weights, KEPT, COLS, OWN, FIRST)
    least, most = tl.full([BLOCK_R, BLOCK_L], 1.0, DTYPE), tl.full([BLOCK_R, BLOCK_L], 1.0, DTYPE)
    zero = tl.zeros([BLOCK_R, BLOCK_L], DTYPE)
    steepest = zero
    sums = (zero,) * (KEPT * OWN)
    for step in range(0, steps + ABOVE, ROWS):
        fresh = load_rows(
            x_ptr + rows_down(x_strides, KEPT, X_ALIGN), x_strides, h + KEPT, w, height, width, exists,
            ROWS * S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
        )  # fmt: skip
        sums = sums + (zero,) * (ROWS * S_H * OWN)
        if CALM:
            more_values, more_weights = weighted(fresh, center)
            m, u, v = along_rows(more_values, more_weights, center, FINE, ROWS * S_H, COLS, WINDOWS, S_W, K_W)
            tops, totals, means = tops + m, totals + u, means + v
            values = values + _own(more_values, ROWS * S_H, COLS, OWN, FIRST)
            weights = weights + _own(more_weights, ROWS * S_H, COLS, OWN, FIRST)
            m, u, v = down_rows(tops, totals, means, center, FINE, ROWS, WINDOWS, S_H, K_H)
            all_a, all_b = (), ()
        for i in tl.static_range(ROWS):
            inside = exists & ((y_h + i >= 0) & (y_h + i < out_sizes[2]))[:, None]
            grads = load_row(
                grad_ptr + rows_down(grad_strides, i, GRAD_ALIGN), y_w, out_sizes[3], inside, 0, LEFT, WINDOWS,
                GRAD_STEP, GRAD_VECTOR, DTYPE,
            )  # fmt: skip
            if CALM:
                row_m, row_u = m[i * WINDOWS : (i + 1) * WINDOWS], u[i * WINDOWS : (i + 1) * WINDOWS]
                row_v = v[i * WINDOWS : (i + 1) * WINDOWS]
                for n in tl.static_range(WINDOWS):
                    here = (y_w + LEFT + n >= 0) & (y_w + LEFT + n < out_sizes[3])
                    least, most = extended(least, most, row_u[n], inside & here[:, None])
                    steepest = larger(steepest, tl.abs(grads[n]))
                more_a, more_b = for_columns(row_m, row_u, row_v, grads, center, OWN, FIRST, WINDOWS, S_W, K_W)
                all_a, all_b = all_a + more_a, all_b + more_b
            else:
                sums = _add_gradients_of_any(
                    sums, kept + fresh, grads, y_w + LEFT, out_sizes[3], inside, EXACT,
                    K_H, K_W, S_W, OWN, FIRST, COLS, WINDOWS,
                )  # fmt: skip
        if CALM:
            sums = add_gradients(sums, values, weights, center, all_a, all_b, EXACT, ROWS, OWN, S_H, K_H)
            tops, totals = tops[ROWS * S_H * WINDOWS :], totals[ROWS * S_H * WINDOWS :]
            means = means[ROWS * S_H * WINDOWS :]
            values, weights = values[ROWS * S_H * OWN :], weights[ROWS * S_H * OWN :]
        else:
            kept = (kept + fresh)[S_H * COLS :]
        for i in tl.static_range(ROWS * S_H):
            own = (step + i // S_H >= ABOVE) & (step + i // S_H < steps + ABOVE)  # a row of cells of this program's
            mask = exists & (own & (h + i >= 0) & (h + i < height))[:, None]
            row = dx_ptr + rows_down(dx_strides, i, DX_ALIGN)
            store_row(row, sums[i * OWN : (i + 1) * OWN], w, width, mask, OWN, DX_STEP, VECTOR)
        sums = sums[ROWS * S_H * OWN :]
        y_h += ROWS
        h += ROWS * S_H
        x_ptr += rows_down(x_strides, ROWS * S_H, X_ALIGN)
        dx_ptr += rows_down(dx_strides, ROWS * S_H, DX_ALIGN)
        grad_ptr += rows_down(grad_strides, ROWS, GRAD_ALIGN)
    return is_restless(least, most) | is_steep(steepest)


@triton.jit
def _own(values, ROWS: tl.constexpr, COLS: tl.constexpr, OWN: tl.constexpr, FIRST: tl.constexpr):
    """The OWN columns of ROWS, of which the first is at -FIRST."""
    own = ()
    for i in tl.static_range(ROWS):
        own = own + values[i * COLS - FIRST : i * COLS - FIRST + OWN]
    return own


@triton.jit
def _add_gradients_of_any(
    sums, values, grads, w, width, inside, EXACT: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr,
    S_W: tl.constexpr, OWN: tl.constexpr, FIRST: tl.constexpr, COLS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """``add_gradients`` of windows of any kind."""
    for n in tl.static_range(WINDOWS):
        top, total, mean, weights, belows = _soften(values, n * S_W, COLS, K_H, K_W)
        exists = inside & ((w + n >= 0) & (w + n < width))[:, None]
        _top, scale, less = for_elements(top, total, mean, grads[n], exists)
        added = ()
        for k in tl.static_range(K_H * OWN):
            if k % OWN - FIRST - n * S_W >= 0 and k % OWN - FIRST - n * S_W < K_W:  # the window has this column
                weight = weights[k // OWN * K_W + k % OWN - FIRST - n * S_W]
                a = belows[k // OWN * K_W + k % OWN - FIRST - n * S_W]
                added = added + (sums[k] + element_gradient(weight, a, scale, less, EXACT),)
            else:
                added = added + (sums[k],)
        sums = added
    return sums


@triton.jit
def soft_pool_rows_backward_kernel(
    grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
    ROWS: tl.constexpr, EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    CELLS: tl.constexpr, LEFT: tl.constexpr, WINDOWS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
    X_STEP: tl.constexpr, GRAD_STEP: tl.constexpr, DX_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    restless = _backward(
        tl.program_id(0), grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
        True, ROWS, EXACT, KERNEL, STRIDE, PADDING, CELLS, LEFT, WINDOWS, DTYPE, INDEX, CHANNELS_INNER,
        VECTOR, GRAD_VECTOR, X_STEP, GRAD_STEP, DX_STEP, X_ALIGN, GRAD_ALIGN, DX_ALIGN, BLOCK_R, BLOCK_L,
    )  # fmt: skip
    found = tl.max(tl.max(restless.to(tl.int32), 1), 0)
    if found > 0:
        _backward(
            _again(found), grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
            False, 1, EXACT, KERNEL, STRIDE, PADDING, CELLS, LEFT, WINDOWS, DTYPE, INDEX, CHANNELS_INNER,
            VECTOR, GRAD_VECTOR, X_STEP, GRAD_STEP, DX_STEP, X_ALIGN, GRAD_ALIGN, DX_ALIGN, BLOCK_R, BLOCK_L,
        )  # fmt: skip
