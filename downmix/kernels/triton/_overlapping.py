# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false
"""Triton kernels of soft_pool for windows of one or two dimensions that overlap: x is read once, and written once.

A lane walks down the rows of windows, CELLS of them side by side, and keeps in registers what the next row shares with
this one: elements and their weights in forward, sums of gradients too in backward. There it also computes the windows
that reach into its own columns from both sides, rather than wait for a neighbour. A cell is what lies between the
starts of two windows. Windows that are not calm (`_columns.py`) take a second walk, in which each has its own maximum.
"""

import triton
import triton.language as tl

from ._columns import add_gradients, center_of, columns_of, is_restless, weighted, window_of
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
    program, x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes,
    CALM: tl.constexpr, AHEAD: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, X_STEP: tl.constexpr, Y_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """All rows of a program; where CALM, it says which lanes have windows that are not."""
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    KEPT: tl.constexpr = K_H - S_H
    FIRST: tl.constexpr = -PADDING[2]
    COLS: tl.constexpr = (CELLS - 1) * S_W + K_W
    OTHER: tl.constexpr = float("-inf")
    _rows, _chunks, _groups, steps = counts
    _channels, _depth, height, width = sizes
    b, c, d, chunk, group, exists = lanes_of(program, counts, sizes, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L)
    y_h, y_w = chunk * steps, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W
    x_ptr = pointers_to(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    y_ptr = pointers_to(y_ptr, y_strides, b, c, d, y_h, y_w, CHANNELS_INNER, Y_ALIGN)
    kept = load_rows(
        x_ptr, x_strides, h, w, height, width, exists, OTHER, KEPT, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    middle = load_middle(
        x_ptr, x_strides, h, w, height, width, exists, K_H // 2, FIRST, K_W, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    center = center_of(middle)
    weights, products = weighted(kept, center)
    restless = tl.zeros([BLOCK_R, BLOCK_L], tl.int1)
    upcoming = load_rows(
        x_ptr + rows_down(x_strides, KEPT, X_ALIGN), x_strides, h + KEPT, w, height, width, exists, OTHER,
        AHEAD * S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    for step in range(steps):
        inside = exists & (y_h < out_sizes[2])[:, None]
        upcoming = upcoming + load_rows(
            x_ptr + rows_down(x_strides, KEPT + AHEAD * S_H, X_ALIGN), x_strides, h + KEPT + AHEAD * S_H, w,
            height, width, inside & (tl.full([1, 1], AHEAD, tl.int32) + step < steps), OTHER,
            S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
        )  # fmt: skip
        fresh, upcoming = upcoming[: S_H * COLS], upcoming[S_H * COLS :]
        outputs = ()
        if CALM:
            more_weights, more_products = weighted(fresh, center)
            weights, products = weights + more_weights, products + more_products
            columns = columns_of(weights, products, K_H, COLS)
            for n in tl.static_range(CELLS):
                total, _inverse, mean = window_of(columns, n * S_W, K_W)
                outputs = outputs + (center + mean,)
                restless |= is_restless(total, inside & (y_w + n < out_sizes[3])[:, None])
            weights, products = weights[S_H * COLS :], products[S_H * COLS :]
        else:
            for n in tl.static_range(CELLS):
                top, total, mean, _weights, _belows = _soften(kept + fresh, n * S_W, COLS, K_H, K_W)
                outputs = outputs + (tl.where(tl.abs(top) == float("inf"), top, top + mean / total),)
        store_row(y_ptr, outputs, y_w, out_sizes[3], inside, CELLS, Y_STEP, Y_VECTOR)
        kept = (kept + fresh)[S_H * COLS :]
        y_h += 1
        h += S_H
        x_ptr += rows_down(x_strides, S_H, X_ALIGN)
        y_ptr += rows_down(y_strides, 1, Y_ALIGN)
    return restless


@triton.jit
def soft_pool_rows_forward_kernel(
    x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, AHEAD: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CELLS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, X_STEP: tl.constexpr, Y_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    restless = _forward(
        tl.program_id(0), x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, True, AHEAD,
        KERNEL, STRIDE, PADDING, CELLS, DTYPE, INDEX, CHANNELS_INNER, VECTOR, Y_VECTOR, X_STEP, Y_STEP,
        X_ALIGN, Y_ALIGN, BLOCK_R, BLOCK_L,
    )  # fmt: skip
    found = tl.max(tl.max(restless.to(tl.int32), 1), 0)
    if found > 0:
        _forward(
            _again(found), x_ptr, y_ptr, x_strides, y_strides, counts, sizes, out_sizes, False, 0,
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
    CALM: tl.constexpr, AHEAD: tl.constexpr, EXACT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    CELLS: tl.constexpr, LEFT: tl.constexpr, WINDOWS: tl.constexpr,
    DTYPE: tl.constexpr, INDEX: tl.constexpr, CHANNELS_INNER: tl.constexpr,
    VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
    X_STEP: tl.constexpr, GRAD_STEP: tl.constexpr, DX_STEP: tl.constexpr,
    X_ALIGN: tl.constexpr, GRAD_ALIGN: tl.constexpr, DX_ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """All rows of a program; where CALM, it says which lanes have windows that are not.

    LEFT is the first window that reaches into a lane's own columns, from its first cell on, and WINDOWS how many do.
    """
    K_H: tl.constexpr = KERNEL[1]
    K_W: tl.constexpr = KERNEL[2]
    S_H: tl.constexpr = STRIDE[1]
    S_W: tl.constexpr = STRIDE[2]
    OWN: tl.constexpr = CELLS * S_W
    KEPT: tl.constexpr = K_H - S_H
    ABOVE: tl.constexpr = (K_H - 1) // S_H  # rows of windows above a cell that reach into it
    FIRST: tl.constexpr = LEFT * S_W - PADDING[2]
    COLS: tl.constexpr = (WINDOWS - 1) * S_W + K_W
    OTHER: tl.constexpr = float("-inf")
    _rows, _chunks, _groups, steps = counts
    _channels, _depth, height, width = sizes
    b, c, d, chunk, group, exists = lanes_of(program, counts, sizes, INDEX, CHANNELS_INNER, X_ALIGN, BLOCK_R, BLOCK_L)
    y_h, y_w = chunk * steps - ABOVE, group * CELLS
    h, w = y_h * S_H - PADDING[1], y_w * S_W
    x_ptr = pointers_to(x_ptr, x_strides, b, c, d, h, w, CHANNELS_INNER, X_ALIGN)
    dx_ptr = pointers_to(dx_ptr, dx_strides, b, c, d, h, w, CHANNELS_INNER, DX_ALIGN)
    grad_ptr = pointers_to(grad_ptr, grad_strides, b, c, d, y_h, y_w, CHANNELS_INNER, GRAD_ALIGN)
    kept = load_rows(
        x_ptr, x_strides, h, w, height, width, exists, OTHER, KEPT, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN
    )
    middle = load_middle(
        x_ptr, x_strides, h, w, height, width, exists, ABOVE * S_H + K_H // 2, -PADDING[2], K_W,
        X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    center = center_of(middle)
    weights, products = weighted(kept, center)
    restless = tl.zeros([BLOCK_R, BLOCK_L], tl.int1)
    zero = tl.zeros([BLOCK_R, BLOCK_L], DTYPE)
    sums = (zero,) * (KEPT * OWN)
    upcoming = load_rows(
        x_ptr + rows_down(x_strides, KEPT, X_ALIGN), x_strides, h + KEPT, w, height, width, exists, OTHER,
        AHEAD * S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
    )  # fmt: skip
    inside = exists & ((y_h >= 0) & (y_h < out_sizes[2]))[:, None]
    upcoming_grads = load_row(
        grad_ptr, y_w, out_sizes[3], inside, 0, LEFT, WINDOWS, GRAD_STEP, GRAD_VECTOR, DTYPE
    )[: AHEAD * WINDOWS]  # fmt: skip
    for step in range(steps + ABOVE):
        more = exists & (tl.full([1, 1], AHEAD - ABOVE, tl.int32) + step < steps)
        upcoming = upcoming + load_rows(
            x_ptr + rows_down(x_strides, KEPT + AHEAD * S_H, X_ALIGN), x_strides, h + KEPT + AHEAD * S_H, w,
            height, width, more, OTHER, S_H, FIRST, COLS, X_STEP, VECTOR, DTYPE, X_ALIGN,
        )  # fmt: skip
        upcoming_grads = upcoming_grads + load_row(
            grad_ptr + rows_down(grad_strides, AHEAD, GRAD_ALIGN), y_w, out_sizes[3],
            more & ((y_h + AHEAD >= 0) & (y_h + AHEAD < out_sizes[2]))[:, None],
            0, LEFT, WINDOWS, GRAD_STEP, GRAD_VECTOR, DTYPE,
        )  # fmt: skip
        fresh, upcoming = upcoming[: S_H * COLS], upcoming[S_H * COLS :]
        grads, upcoming_grads = upcoming_grads[:WINDOWS], upcoming_grads[WINDOWS:]
        inside = exists & ((y_h >= 0) & (y_h < out_sizes[2]))[:, None]
        sums = sums + (zero,) * (S_H * OWN)
        if CALM:
            more_weights, more_products = weighted(fresh, center)
            weights, products = weights + more_weights, products + more_products
            sums, found = add_gradients(
                sums, weights, products, grads, y_w + LEFT, out_sizes[3], inside, EXACT,
                K_H, K_W, S_W, OWN, FIRST, COLS, WINDOWS,
            )  # fmt: skip
            restless |= found
            weights, products = weights[S_H * COLS :], products[S_H * COLS :]
        else:
            sums = _add_gradients_of_any(
                sums, kept + fresh, grads, y_w + LEFT, out_sizes[3], inside, EXACT,
                K_H, K_W, S_W, OWN, FIRST, COLS, WINDOWS,
            )  # fmt: skip
        for i in tl.static_range(S_H):
            mask = exists & ((step >= ABOVE) & (h + i >= 0) & (h + i < height))[:, None]
            row = dx_ptr + rows_down(dx_strides, i, DX_ALIGN)
            store_row(row, sums[i * OWN : (i + 1) * OWN], w, width, mask, OWN, DX_STEP, VECTOR)
        kept, sums = (kept + fresh)[S_H * COLS :], sums[S_H * OWN :]
        y_h += 1
        h += S_H
        x_ptr += rows_down(x_strides, S_H, X_ALIGN)
        dx_ptr += rows_down(dx_strides, S_H, DX_ALIGN)
        grad_ptr += rows_down(grad_strides, 1, GRAD_ALIGN)
    return restless


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
    AHEAD: tl.constexpr, EXACT: tl.constexpr,
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
        True, AHEAD, EXACT, KERNEL, STRIDE, PADDING, CELLS, LEFT, WINDOWS, DTYPE, INDEX, CHANNELS_INNER,
        VECTOR, GRAD_VECTOR, X_STEP, GRAD_STEP, DX_STEP, X_ALIGN, GRAD_ALIGN, DX_ALIGN, BLOCK_R, BLOCK_L,
    )  # fmt: skip
    found = tl.max(tl.max(restless.to(tl.int32), 1), 0)
    if found > 0:
        _backward(
            _again(found), grad_ptr, x_ptr, dx_ptr, grad_strides, x_strides, dx_strides, counts, sizes, out_sizes,
            False, 0, EXACT, KERNEL, STRIDE, PADDING, CELLS, LEFT, WINDOWS, DTYPE, INDEX, CHANNELS_INNER,
            VECTOR, GRAD_VECTOR, X_STEP, GRAD_STEP, DX_STEP, X_ALIGN, GRAD_ALIGN, DX_ALIGN, BLOCK_R, BLOCK_L,
        )  # fmt: skip
