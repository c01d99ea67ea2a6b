"""Element operations of torch's operators in inference, by kind; multiply-adds come from torch's own counter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..ops import pix, power_pool, soft_pool, stochastic_pool

Elements = dict[str, int]

# Of each output element. What a formula divides by is divided; a fused multiply-add would save one.
_SIGMOID = {"add": 2, "exp": 1, "divide": 1}  # 1 / (1 + e^−x), as the source counts
_POINTWISE: dict[str, dict[str, int]] = {
    **{name: {"add": 1} for name in ("add", "sub", "rsub", "neg")},
    **{name: {"multiply": 1} for name in ("mul", "square")},
    **{name: {"divide": 1} for name in ("div", "reciprocal")},
    **{name: {"compare": 1} for name in ("relu", "clamp_min", "clamp_max", "maximum", "minimum", "abs", "threshold")},
    **{name: {"compare": 1} for name in ("lt", "le", "gt", "ge", "eq", "ne", "isnan", "sign")},
    **{name: {"compare": 2} for name in ("hardtanh", "clamp")},
    **{name: {"select": 1} for name in ("where", "masked_fill")},
    **{name: {"logic": 1} for name in ("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_not")},
    **{name: {"round": 1} for name in ("floor", "ceil", "round")},
    **{name: {name: 1} for name in ("exp", "log", "sqrt", "pow", "erf", "sin", "cos")},
    "rsqrt": {"sqrt": 1, "divide": 1},
    "sigmoid": _SIGMOID,
    "silu": {**_SIGMOID, "multiply": 1},
    "tanh": {"multiply": 1, "exp": 1, "add": 2, "divide": 1},  # (e^2x − 1) / (e^2x + 1)
    "gelu": {"multiply": 3, "erf": 1, "add": 1},
    "leaky_relu": {"compare": 1, "multiply": 1},
    "_prelu_kernel": {"compare": 1, "multiply": 1},
    "elu": {"compare": 1, "exp": 1, "add": 1, "multiply": 1},
    "softplus": {"compare": 1, "exp": 1, "add": 1, "log": 1},
    "mish": {"exp": 2, "add": 3, "log": 1, "divide": 1, "multiply": 2},  # x · tanh(log(1 + e^x))
    "hardsigmoid": {"add": 1, "compare": 2, "multiply": 1},
    "hardswish": {"add": 1, "compare": 2, "multiply": 2},
    "upsample_bilinear2d": {"multiply": 4, "add": 3},
}
_MOVES = (
    *("clone", "_to_copy", "copy", "cat", "stack", "contiguous", "constant_pad_nd", "reflection_pad2d", "repeat"),
    *("index", "index_select", "gather", "roll", "flip", "channel_shuffle", "native_channel_shuffle", "pixel_shuffle"),
    "scatter",
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "zeros", "ones", "full", "zeros_like"),
    *("ones_like", "full_like", "zero", "fill", "arange", "linspace", "scalar_tensor", "new_zeros", "new_full"),
)


def elements(name: str, args: Any, output: Any) -> Elements | None:
    """Element operations by kind, or None where there is no formula; an empty dict is a move.

    Args:
        name: of the operator, without namespace, overload and the underscore of an in-place one.
        args: its arguments.
        output: its result.
    """
    if name in _MOVES:
        return {}
    first: Any = output[0] if isinstance(output, tuple | list) else output
    if name in _POINTWISE:
        return {kind: count * first.numel() for kind, count in _POINTWISE[name].items()}
    return _FORMULAS[name](args, first) if name in _FORMULAS else None


def _bias(args: Any, y: Tensor) -> Elements:
    return {"add": y.numel()} if args[2] is not None else {}


def _mean(args: Any, y: Tensor) -> Elements:
    return {"add": args[0].numel() - y.numel(), "divide": y.numel()}


def _sum(args: Any, y: Tensor) -> Elements:
    return {"add": args[0].numel() - y.numel()}


def _extremum(args: Any, y: Tensor) -> Elements:
    return {"compare": args[0].numel() - y.numel()}


def _sort(args: Any, y: Tensor) -> Elements:
    # A merge sort's, at most.
    return {"compare": y.numel() * max(args[0].shape[-1] - 1, 0).bit_length()}


def _softmax(args: Any, y: Tensor) -> Elements:
    rows = y.numel() // max(y.shape[args[1]], 1)
    rest = y.numel() - rows
    return {"compare": rest, "add": y.numel() + rest, "exp": y.numel(), "divide": y.numel()}


def _log_softmax(args: Any, y: Tensor) -> Elements:
    rows = y.numel() // max(y.shape[args[1]], 1)
    rest = y.numel() - rows
    return {"compare": rest, "add": 2 * y.numel() + rest, "exp": y.numel(), "log": rows}


def _attention(args: Any, y: Tensor) -> Elements:
    scores = args[0].shape[:-1].numel() * args[1].shape[-2]
    rows = args[0].shape[:-1].numel()
    return {"multiply": scores, "compare": scores - rows, "add": 2 * scores - rows, "exp": scores, "divide": scores}


def _batch_norm(args: Any, y: Tensor) -> Elements:
    # Scale and shift are made once a channel: w / sqrt(var + eps), b − mean · scale. Then one of each an element.
    n, channels = y.numel(), y.shape[1]
    count = {"multiply": n + channels, "add": n + 2 * channels, "sqrt": channels, "divide": channels}
    if args[5]:  # on the batch's own statistics, as InstanceNorm does: mean and variance in two passes
        count = {**count, "add": count["add"] + 3 * n, "multiply": count["multiply"] + n}
    return count


def _group_norm(args: Any, y: Tensor) -> Elements:
    return _standardize(y.numel(), groups=args[3] * args[6], affine=args[1] is not None)


def _layer_norm(args: Any, y: Tensor) -> Elements:
    return _standardize(y.numel(), groups=y.numel() // max(math.prod(args[1]), 1), affine=args[2] is not None)


def _standardize(n: int, groups: int, affine: bool) -> Elements:
    # Sum; difference, square, sum; product with 1/σ; then scale and shift.
    return {"add": (3 + affine) * n, "multiply": (2 + affine) * n, "sqrt": groups, "divide": 3 * groups}


def _max_pool(args: Any, y: Tensor) -> Elements:
    return {"compare": y.numel() * (_window(args[1], y) - 1)}


def _avg_pool(args: Any, y: Tensor) -> Elements:
    return {"add": y.numel() * (_window(args[1], y) - 1), "divide": y.numel()}


def _window(kernel_size: Any, y: Tensor) -> int:
    # Windows at the border count whole. A single number stands for all dimensions of space, of which y has dim − 2.
    return math.prod(kernel_size) if len(kernel_size) > 1 else kernel_size[0] ** (y.dim() - 2)


def _adaptive_avg_pool(args: Any, y: Tensor) -> Elements:
    return {"add": _adaptive_reads(args[0], y) - y.numel(), "divide": y.numel()}


def _adaptive_max_pool(args: Any, y: Tensor) -> Elements:
    return {"compare": _adaptive_reads(args[0], y) - y.numel()}


def _adaptive_reads(x: Tensor, y: Tensor) -> int:
    # Output i of n reads [floor(i·L / n), ceil((i + 1)·L / n)): windows overlap where n does not divide L.
    sides = zip(x.shape[2:], y.shape[2:], strict=True)
    reads = [sum(-(-(i + 1) * size // n) - i * size // n for i in range(n)) for size, n in sides]
    return y.shape[:2].numel() * math.prod(reads)


def _pick_or_mix(args: Any, y: Tensor) -> Elements:
    x, _, reduction, _, fusion, operator, *_ = args
    fused, weighted = pix.operations(x.shape, reduction, fusion, operator), fusion == "weighted"
    if operator != "max+avg":
        count = {"add" if operator == "avg" else "compare": fused}
    else:
        count = {"compare": fused // 2, "add": fused // 2} if weighted else {"compare or add": fused}  # p decides
    # `operations` leaves out the product with p, as the source does; a mean's 1/r goes into p.
    return {**count, "multiply": (1 + weighted) * y.numel(), "add": count.get("add", 0) + weighted * y.numel()}


_FORMULAS: dict[str, Callable[[Any, Tensor], Elements]] = {
    "convolution": _bias,
    **dict.fromkeys(("mm", "bmm"), lambda args, y: {}),
    **dict.fromkeys(("addmm", "baddbmm"), lambda args, y: {"add": y.numel()}),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    **dict.fromkeys(("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"), _attention),
    **dict.fromkeys(("_native_batch_norm_legit", "native_batch_norm", "cudnn_batch_norm"), _batch_norm),
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "mean": _mean,
    "sum": _sum,
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "argmin"), _extremum),
    "sort": _sort,
    **dict.fromkeys(("_softmax", "_safe_softmax"), _softmax),
    "_log_softmax": _log_softmax,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _max_pool),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), _adaptive_avg_pool),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_max_pool),
    "pick_or_mix": _pick_or_mix,
    "soft_pool": lambda args, y: soft_pool.operations(y.shape, args[1]),
    "lip_pool": lambda args, y: soft_pool.operations(y.shape, args[2]),
    "power_pool": lambda args, y: power_pool.operations(y.shape, args[1]),
    "stochastic_pool": lambda args, y: stochastic_pool.draw_operations(y.shape, args[2]),
    "stochastic_mean": lambda args, y: stochastic_pool.mean_operations(y.shape, args[1]),
}
