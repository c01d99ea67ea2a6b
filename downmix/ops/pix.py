"""PiX, Pick-or-Mix: one probability per output channel picks the maximum of a channel group, or mixes it."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor, fx

from ._define import Operator, check_choice, check_floating, compute_dtype, memory_format, node_of
from ._watching import for_autograd, transforming

FUSIONS = ("threshold", "weighted")
OPERATORS = ("max+avg", "max", "avg", "min")


def pick_or_mix(
    x: Tensor,
    p: Tensor,
    reduction: int,
    *,
    threshold: float = 0.5,
    fusion: str = "threshold",
    operator: str = "max+avg",
    legacy_tail: bool = False,
) -> Tensor:
    r"""Reduces channels in groups of ``reduction``, each output channel by its own probability.

    Group :math:`i` holds the contiguous channels :math:`[i r, (i+1) r)`; the last group is shorter where ``reduction``
    does not divide C. With :math:`M_i = \max_j X_j` and :math:`A_i = \mathrm{mean}_j X_j` over the group,

    .. math::
        Y_i = \begin{cases} p_i M_i & p_i < t \quad\text{(pick)} \\ p_i A_i & p_i \ge t \quad\text{(mix)} \end{cases}
        \qquad\text{or, weighted,}\qquad Y_i = p_i M_i + (1 - p_i) A_i .

    The gradient of a maximum goes to the first of equal channels; none flows through the comparison with the
    threshold. A NaN in a group gives NaN. Half and bfloat16 are computed in float32.

    Args:
        x (Tensor[B, C, H, W] or Tensor[C, H, W]): activations in float16, bfloat16, float32 or float64, of any memory
            layout and stride. The result has the dtype of ``x``, and is channels_last where ``x`` is.
        p (Tensor[B, G] or Tensor[B, G, 1, 1]): probabilities, G = ceil(C / reduction); without B for an unbatched
            ``x``. Their dtype may differ from that of ``x``, as it does under autocast.
        reduction (int): channels per group (ζ in PiX, R in FACS), at least 1. With 1, Y = p·X.
        threshold (float): t. 0 always mixes; 1 always picks, but where p is exactly 1.
        fusion (str): ``"threshold"`` or ``"weighted"``.
        operator (str): ``"max+avg"``, or one reduction that takes the place of both: ``"max"``, ``"avg"``, ``"min"``
            (so weighted fusion with a single one leaves p no say: p·v + (1 − p)·v = v).
        legacy_tail (bool): divide the sum of a short last group by ``reduction``, as the published kernel does, not
            by the group's true size.

    Returns:
        Tensor[B, G, H, W] or Tensor[G, H, W]

    Raises:
        TypeError: if ``x`` or ``p`` is no tensor of such a dtype, or ``reduction`` or ``threshold`` no number.
        ValueError: if ``reduction`` is no positive integer, ``threshold`` is NaN, an option is unknown, or the shape
            or device of ``p`` does not fit ``x``.

    Example:
        >>> x = torch.tensor([1.0, 5.0, 2.0, 4.0]).reshape(1, 4, 1, 1)
        >>> pick_or_mix(x, torch.tensor([[0.2, 0.8]]), reduction=2).flatten()
        tensor([1.0000, 2.4000])

    Source:
        Kumar et al., *Pick-or-Mix: Dynamic Channel Sampling for ConvNets*, CVPR 2024, supplement J and K; the same
        module as FACS, section 3.3. Deviations: the source's equation picks where p ≤ t, its kernels where p < t, we
        follow the kernels; a short last group is divided by its true size; NaN stays NaN (the kernel: −FLT_MAX·p).
    """
    if isinstance(x, fx.Proxy):
        options = {"threshold": threshold, "fusion": fusion, "operator": operator, "legacy_tail": legacy_tail}
        return node_of(pick_or_mix, x, p, reduction, **options)
    reduction = check_reduction(reduction)
    check_threshold(threshold)
    check_choice("fusion", fusion, FUSIONS)
    check_choice("operator", operator, OPERATORS)
    _check_tensors(x, p, reduction)
    rule = reduction, float(threshold), fusion, operator, legacy_tail
    if x.dim() == 3:
        return _pick_or_mix(x.unsqueeze(0), p.reshape(1, -1), *rule).squeeze(0)
    return _pick_or_mix(x, p.flatten(1), *rule)


def _reference(
    x: Tensor, p: Tensor, reduction: int, threshold: float, fusion: str, operator: str, legacy_tail: bool
) -> Tensor:
    whole = x.shape[1] // reduction
    groups = [x[:, : whole * reduction].unflatten(1, (whole, reduction))]  # [B, G, r, H, W]
    if x.shape[1] % reduction:
        groups.append(x[:, whole * reduction :].unsqueeze(1))  # [B, 1, C mod r, H, W]
    dtype = compute_dtype(x, p)

    def reduce(kind: str) -> Tensor:
        if kind == "avg":
            parts = [group.sum(2, dtype=dtype) / (reduction if legacy_tail else group.shape[2]) for group in groups]
        elif (torch.is_grad_enabled() or transforming()) and not torch.jit.is_tracing():
            # Their gradients go to one winner, the first; those of amax and amin to all.
            parts = [(group.max(2) if kind == "max" else group.min(2)).values for group in groups]
        else:
            parts = [group.amax(2) if kind == "max" else group.amin(2) for group in groups]
        return (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).to(dtype)

    probability = p.to(dtype)[:, :, None, None]
    if operator == "max+avg":
        upper, lower = reduce("max"), reduce("avg")
    else:
        upper = lower = reduce(operator)
    if fusion == "weighted":
        y = probability * upper + (1 - probability) * lower
    else:
        # The choice comes before the product, so that an infinite value not chosen leaves no NaN in dp.
        y = probability * torch.where(probability < threshold, upper, lower)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def operations(x_shape: tuple[int, ...], reduction: int, fusion: str = "threshold", operator: str = "max+avg") -> int:
    """Comparisons and additions of the channel fusion: (r − 1)·G·H·W, twice that where max and mean are both needed.

    As the source counts (PiX supplement, C.6 and E), so without the product with p. A short last group counts with
    its true size, so G groups of C channels take C − G.
    """
    batch, channels, *space = x_shape
    passes = 2 if fusion == "weighted" and operator == "max+avg" else 1
    return passes * batch * (channels - math.ceil(channels / reduction)) * math.prod(space)


def check_reduction(reduction: int) -> int:
    """Returns ``reduction`` as a plain int, or raises the sentence that says what is allowed."""
    if type(reduction) is int and reduction > 0:  # the usual case; all that follows takes longer
        return reduction
    allowed = "reduction must be a positive integer: the number of input channels per output channel"
    if isinstance(reduction, bool) or not isinstance(reduction, numbers.Real | torch.SymInt):
        raise TypeError(f"{allowed}, got {reduction!r}")
    if not isinstance(reduction, numbers.Integral):
        raise ValueError(f"{allowed}, got {reduction}; a ratio that is no integer needs the plain 1×1 convolution")
    if reduction < 1:
        raise ValueError(f"{allowed}, got {reduction}")
    return int(reduction)


def check_threshold(threshold: float) -> None:
    """Raises unless ``threshold`` is a number that p can be compared with."""
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real):
        raise TypeError(f"threshold must be a number, usually between 0 and 1, got {threshold!r}")
    if threshold != threshold:  # as math.isnan, which torch.compile can't follow where numbers are dynamic
        raise ValueError("threshold must be a number, usually between 0 and 1, got NaN")


def _check_tensors(x: Tensor, p: Tensor, reduction: int) -> None:
    check_floating("x", x)
    check_floating("p", p)
    if x.dim() not in (3, 4) or x.shape[-3] == 0:
        raise ValueError(f"x must be [B, C, H, W] or [C, H, W] with at least one channel, got {list(x.shape)}")
    if p.device != x.device:
        raise ValueError(f"x and p must be on one device, got x on {x.device} and p on {p.device}; move p there")
    channels = x.shape[-3]
    wanted = [*x.shape[:-3], -(-channels // reduction)]
    if list(p.shape) not in (wanted, [*wanted, 1, 1]):
        raise ValueError(
            f"p needs ceil(C / reduction) = {wanted[-1]} channels for C={channels}, reduction={reduction}, "
            f"got {list(p.shape)}; pass p of shape {[*wanted, 1, 1]} or {wanted}"
        )


def _flop_formula(x_shape, p_shape, reduction, threshold, fusion, operator, *args, **kwargs) -> int:
    return operations(x_shape, reduction, fusion, operator)


def _compiles_well(x: Tensor, p: Tensor, *constants: object) -> bool:
    # In inference, on the CPU in NCHW only: alone nearly even with our kernels, and joined with what is around it.
    return not for_autograd((x, p)) and (x.device.type != "cpu" or memory_format(x) == torch.contiguous_format)


_pick_or_mix = Operator("pick_or_mix", _reference, stem="pix", operations=_flop_formula, compiles_well=_compiles_well)
