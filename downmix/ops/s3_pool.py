"""S3 pooling: a max pool whose steps are drawn at random in training, and averaged over in evaluation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ._define import compute_dtype, memory_format, node_of
from ._windows import Size, output_sizes, read_sizes, read_window


def s3_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    grid_size: Size | None = None,
    training: bool = False,
) -> Tensor:
    """S3 pooling over [B, C, L] or [C, L]. See :func:`s3_pool2d`.

    Example:
        >>> s3_pool1d(torch.tensor([[[1.0, 2.0, 4.0, 0.0]]]), 2)
        tensor([[[3., 2.]]])
    """
    return _s3_pool_nd(1, x, (kernel_size, stride, padding, dilation, ceil_mode), grid_size, training)


def s3_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    grid_size: Size | None = None,
    training: bool = False,
) -> Tensor:
    """Maxima of windows of size s, at rows and columns that are drawn at random in training.

    The maximum m of the s × s window that starts at each position of the map is taken first. In training, rows and
    columns are then cut into strips of g positions each, and of each strip g / s distinct ones stay, in their order;
    one draw a call for all samples and channels. In evaluation m is averaged over squares of s × s positions, which
    is what g = s gives on average.

    Output sizes are those of ``torch.nn.functional.max_pool2d``. A last, shorter strip keeps what is left of them.
    Windows are cut off at the ends of the map, and with padding the first starts ``padding`` before it, so each
    holds a value of the map; padding never takes part. NaN and infinity pass as they do through max pooling.

    The draws come from torch's generator of the device: they repeat under ``torch.manual_seed``, differ from call to
    call and under ``torch.func.vmap(randomness="different")``, and differ between processes that are seeded apart.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride. The result has its dtype, and is channels_last where it is.
        kernel_size (int or tuple): s, size of the window and factor of the reduction.
        stride (int or tuple): None or ``kernel_size``.
        padding (int or tuple): on both sides, at most half of the window.
        dilation (int or tuple): 1.
        ceil_mode (bool): whether a last window may reach beyond the padding.
        grid_size (int or tuple): g, a multiple of ``kernel_size``, which None stands for. The larger, the stronger
            the distortion.
        training (bool): whether rows and columns are drawn.

    Returns:
        Tensor[B, C, H', W'] or Tensor[C, H', W']

    Raises:
        TypeError: if ``x`` is no tensor of such a dtype, or a size no integer.
        ValueError: if a size is out of range, the windows don't fit ``x``, ``stride`` is not ``kernel_size``,
            ``dilation`` not 1, or ``grid_size`` no multiple of ``kernel_size``.

    Example:
        >>> s3_pool2d(torch.tensor([[[[4.0, 2.0], [3.0, 1.0]]]]), 2)
        tensor([[[[2.5000]]]])

    Source:
        Zhai, Wu, Kumar, Cheng, Lu, Zhang, Feris, *S3Pool: pooling with stochastic spatial sampling*, CVPR 2017,
        section 3; code github.com/Shuangfei/s3pool at f971620, whose default ``grid_size`` this is. Deviations: there
        windows that reach beyond the map are left out of m, a last strip takes the rest of the map but keeps no more
        than the others, evaluation pads m; here output sizes are those of max pooling, whatever the map's.
    """
    return _s3_pool_nd(2, x, (kernel_size, stride, padding, dilation, ceil_mode), grid_size, training)


def s3_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    grid_size: Size | None = None,
    training: bool = False,
) -> Tensor:
    """S3 pooling over [B, C, D, H, W] or [C, D, H, W]. See :func:`s3_pool2d`."""
    return _s3_pool_nd(3, x, (kernel_size, stride, padding, dilation, ceil_mode), grid_size, training)


def read_grid(n: int, kernel_size: Size, stride: Size | None, dilation: Size, grid_size: Size | None) -> list[int]:
    """``grid_size`` as ``n`` integers; raises where S3 pooling is not defined for these sizes."""
    window = read_sizes("kernel_size", kernel_size, n, least=1)
    if stride is not None and read_sizes("stride", stride, n, least=1) != window:
        raise ValueError(f"S3 pooling needs stride = kernel_size, got stride={stride} for kernel_size={kernel_size}")
    if read_sizes("dilation", dilation, n, least=1) != [1] * n:
        raise ValueError(f"S3 pooling needs dilation=1, got {dilation}")
    grid = window if grid_size is None else read_sizes("grid_size", grid_size, n, least=1)
    if any(g % s for g, s in zip(grid, window, strict=True)):
        raise ValueError(f"grid_size must be a multiple of kernel_size={kernel_size}, got {grid_size}")
    return grid


def _s3_pool_nd(n: int, x: Tensor, window: tuple[Any, ...], grid_size: Size | None, training: bool) -> Tensor:
    if isinstance(x, fx.Proxy):
        return node_of(_s3_pool_nd, n, x, window, grid_size, training)
    size, stride, padding, dilation, ceil_mode = read_window(n, x, *window)
    grid = read_grid(n, window[0], window[1], window[3], grid_size)  # as they were given, for its sentences
    outputs = output_sizes(x.shape[-n:], size, stride, padding, dilation, ceil_mode)
    # A window at each start from −padding to the map's last position.
    pads = [pad for s, p in zip(reversed(size), reversed(padding), strict=True) for pad in (p, s - 1)]
    y = getattr(F, f"max_pool{n}d")(F.pad(x, pads, value=-torch.inf), size, stride=1)
    if training:
        for dim, s, g, out in zip(range(-n, 0), size, grid, outputs, strict=True):
            y = y.index_select(dim, _draw(y.shape[dim], s, g, out, y.device))
    else:
        wide = y.to(compute_dtype(x))
        if n == 3:  # whose average pooling takes no window larger than the map, as ceil_mode and padding make them
            size = [min(s, positions) for s, positions in zip(size, y.shape[-3:], strict=True)]
        # With padding the last square may lack positions, and behind it one more may start than there are outputs.
        y = getattr(F, f"avg_pool{n}d")(wide, size, ceil_mode=ceil_mode or any(padding), count_include_pad=False)
        if any(padding):
            # By indices: whether a slice leaves something out, an exported graph would be bound to.
            for dim, out in zip(range(-n, 0), outputs, strict=True):
                y = y.index_select(dim, torch.arange(out, device=y.device))
        y = y.to(x.dtype)
    return y.contiguous(memory_format=memory_format(x))


def _draw(positions: int, size: int, grid: int, out: int, device: torch.device) -> Tensor:
    """``out`` distinct positions in their order, grid / size from each strip of ``grid`` positions."""
    each = grid // size
    strips = -(-out // each)
    position = torch.arange(strips * grid, device=device).reshape(strips, grid)
    # Those beyond the map come last in the order; the last strip has at least as many others as it keeps.
    order = torch.rand(strips, grid, device=device).masked_fill(position >= positions, 2.0).argsort(1)
    kept = order[:, :each] + position[:, :1]
    return kept.flatten()[:out].sort().values
