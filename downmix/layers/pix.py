"""The PiX layer: a global mean, one linear map and a gate give the probabilities for pick_or_mix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import pix as op
from ..ops._define import check_choice
from ._global_mean import global_mean
from ._input import check_count, lacks_batch
from ._shared_passes import may_share, open_gate, squeeze

GATES = ("sigmoid", "tanh")


class PiX(nn.Module):
    r"""Squeezes C channels into ceil(C / reduction) without a convolution over the map.

    .. math:: z = \mathrm{mean}_{H,W} X, \qquad p = \sigma(W z + b), \qquad Y = \mathrm{pick\_or\_mix}(X, p)

    Takes the place of a squeeze's [1×1 convolution, BatchNorm, ReLU]; no norm and no activation follow it. The
    convolution's weight, of the same shape and under the same name, becomes W. See :func:`downmix.pick_or_mix`.

    Args:
        in_channels (int): C.
        reduction (int): input channels per output channel (ζ in PiX, R in FACS).
        threshold (float): p below it picks the maximum, others mix.
        fusion (str): ``"threshold"`` or ``"weighted"``.
        operator (str): ``"max+avg"``, ``"max"``, ``"avg"`` or ``"min"``.
        gate (str): ``"sigmoid"``, or ``"tanh"`` for ½(1 + tanh).
        norm (bool): BatchNorm between the linear map and the gate.
        bias (bool): b. The published networks have none, the supplement's listing has one.
        device, dtype: of the parameters.

    Shape:
        [B, C, H, W] or [C, H, W] to [B, ceil(C / reduction), H, W] or [ceil(C / reduction), H, W].

    Raises:
        TypeError, ValueError: as :func:`downmix.pick_or_mix`, and where the input has another number of channels.

    Example:
        >>> PiX(256, reduction=4)(torch.randn(2, 256, 7, 7)).shape
        torch.Size([2, 64, 7, 7])

    Source:
        Kumar et al., *Pick-or-Mix*, CVPR 2024, section 3 and supplement G (the ablations: gate, norm, threshold,
        operator, fusion) and K. Deviation: W starts as ResNets initialise the convolution it replaces (He, fan-out),
        the source does not say how.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int,
        *,
        threshold: float = 0.5,
        fusion: str = "threshold",
        operator: str = "max+avg",
        gate: str = "sigmoid",
        norm: bool = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.reduction = op.check_reduction(reduction)
        op.check_threshold(threshold)
        check_choice("fusion", fusion, op.FUSIONS)
        check_choice("operator", operator, op.OPERATORS)
        check_choice("gate", gate, GATES)
        check_count("in_channels", in_channels)
        self.in_channels, self.out_channels = in_channels, -(-in_channels // self.reduction)
        self.threshold, self.fusion, self.operator, self.gate = threshold, fusion, operator, gate
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(self.out_channels, in_channels, 1, 1, **factory))
        self.bias = nn.Parameter(torch.empty(self.out_channels, **factory)) if bias else None
        self.norm = nn.BatchNorm1d(self.out_channels, **factory) if norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def probabilities(self, x: Tensor) -> Tensor:
        """p, one per sample and output channel: [B, C, H, W] to [B, ceil(C / reduction)]."""
        logits = F.linear(global_mean(x), self.weight.flatten(1), self.bias)
        return self.gated(logits if self.norm is None else self.norm(logits))

    def gated(self, logits: Tensor) -> Tensor:
        return open_gate(self.gate, logits)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """With ``shortcut``, shaped like x, x becomes ReLU(x + shortcut) first, in place: for :func:`downmix.fuse`."""
        if lacks_batch(self, x, self.in_channels):
            return PiX.forward(self, x.unsqueeze(0), None if shortcut is None else shortcut.unsqueeze(0)).squeeze(0)
        if self.is_plain and may_share(self.weight, *((x,) if shortcut is None else (x, shortcut))):
            return squeeze(self, x, shortcut)[0]
        if shortcut is not None:
            x.add_(shortcut).relu_()
        return op.pick_or_mix(
            x,
            self.probabilities(x),
            self.reduction,
            threshold=self.threshold,
            fusion=self.fusion,
            operator=self.operator,
        )

    @property
    def is_plain(self) -> bool:
        """Whether its probabilities are those of the definition: no norm, no subclass's and none of its own."""
        own = vars(self)
        return type(self) is PiX and self.norm is None and "probabilities" not in own and "gated" not in own

    @property
    def rule(self) -> tuple[int, float, str, str, bool]:
        """What the operator takes behind its tensors."""
        return self.reduction, float(self.threshold), self.fusion, self.operator, False

    def extra_repr(self) -> str:
        options = "".join(
            f", {name}={getattr(self, name)}"
            for name, default in (
                ("threshold", 0.5),
                ("fusion", "threshold"),
                ("operator", "max+avg"),
                ("gate", "sigmoid"),
            )
            if getattr(self, name) != default
        )
        bias = self.bias is not None
        return f"{self.in_channels}, {self.out_channels}, reduction={self.reduction}{options}, bias={bias}"
