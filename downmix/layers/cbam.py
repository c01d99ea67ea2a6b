"""CBAM: channels, then pixels, each scaled by a gate that means and maxima decide; and its weights in three layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._define import check_choice
from ._global_mean import global_mean
from ._input import lacks_batch
from .squeeze_excite import narrowed


class CBAM(nn.Module):
    r"""Scales channels by a gate from their means and maxima, then pixels by a gate from theirs.

    .. math::
        X' &= \sigma(\mathrm{MLP}(\mathrm{mean}_{H,W} X) + \mathrm{MLP}(\max_{H,W} X)) \cdot X \\
        Y  &= \sigma(\mathrm{norm}(W_{7 \times 7} * [\max_C X', \mathrm{mean}_C X'])) \cdot X'

    with one MLP for both, :math:`W_2\, \mathrm{ReLU}(W_1 s + b_1) + b_2`. The gradient of a maximum goes to one of
    equal values. :func:`translate_cbam` brings weights here from the published code and from timm, and back.

    Args:
        in_channels (int): C.
        reduction (int): C divided by the width inside the MLP (16 in the source).
        device, dtype: of the parameters.

    Shape:
        [B, C, H, W] or [C, H, W] to the same.

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if ``reduction`` leaves no channel inside the MLP, or the input has another number of channels.

    Example:
        >>> CBAM(64)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])

    Source:
        Woo et al., *CBAM: Convolutional Block Attention Module*, ECCV 2018, section 3; official code
        Jongchan/attention-module, ``MODELS/cbam.py``, commit e4ee180, with its BatchNorm (momentum 0.01) in the spatial
        gate, which the paper does not mention. Deviation: its Lp and log-sum-exp pools, and the module without spatial
        gate, are left out.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory: Any = {"device": device, "dtype": dtype}
        width = narrowed(in_channels, reduction)
        self.fc1 = nn.Linear(in_channels, width, **factory)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(width, in_channels, **factory)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False, **factory)
        self.norm = nn.BatchNorm2d(1, momentum=0.01, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if lacks_batch(self, x, self.fc1.in_features):
            return CBAM.forward(self, x.unsqueeze(0)).squeeze(0)
        mean, top = (self.fc2(self.act(self.fc1(s))) for s in (global_mean(x), x.flatten(2).max(2).values))
        x = x * torch.sigmoid(mean + top)[:, :, None, None]
        seen = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)  # [B, 2, H, W]
        return x * torch.sigmoid(self.norm(self.spatial(seen)))


# Our names, and where each other layout keeps the same tensor.
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_LAYOUTS: dict[str, dict[str, str]] = {
    layout: {
        **{f"fc{i}.{leaf}": f"{fc}.{leaf}" for i, fc in ((1, first), (2, second)) for leaf in ("weight", "bias")},
        "spatial.weight": f"{conv}.weight",
        **{f"norm.{leaf}": f"{norm}.{leaf}" for leaf in _NORM},
    }
    for layout, first, second, conv, norm in (
        ("downmix", "fc1", "fc2", "spatial", "norm"),
        ("published", "ChannelGate.mlp.1", "ChannelGate.mlp.3", "SpatialGate.spatial.conv", "SpatialGate.spatial.bn"),
        ("timm", "channel.fc1", "channel.fc2", "spatial.conv.conv", "spatial.conv.bn"),
    )
}


def translate_cbam(state: Mapping[str, Tensor], to: str = "downmix") -> dict[str, Tensor]:
    """The weights of a CBAM module, or of a network with any number of them, in another layout.

    The layouts are that of :class:`CBAM`, of the published code, and of timm's ``CbamModule(mlp_bias=True)``, and the
    functions are the same but for BatchNorm's momentum in training (0.01, timm's is 0.1), and for gradients at equal
    maxima, which timm shares out. timm's spatial gate reads [mean, max] where the others read [max, mean]: the 7×7
    weight is turned round. timm's MLP has no bias by default: it comes with biases of zero.

    Args:
        state (mapping): a state dict; names that belong to no CBAM stay as they are.
        to (str): ``"downmix"``, ``"published"`` or ``"timm"``.

    Returns:
        dict: a new state dict.

    Raises:
        ValueError: if there is no CBAM in it, or one that is another function: without spatial gate, without norm in
            it, or timm's ``LightCbamModule``, which adds mean and maximum before its maps.

    Example:
        >>> sorted(translate_cbam(CBAM(32).state_dict(), "published"))[:2]
        ['ChannelGate.mlp.1.bias', 'ChannelGate.mlp.1.weight']
    """
    check_choice("to", to, tuple(_LAYOUTS))
    ends = {layout: names["spatial.weight"] for layout, names in _LAYOUTS.items()}  # none is the end of another
    layout = next((kind for kind, end in ends.items() if any(_is_or_ends(name, end) for name in state)), None)
    if layout is None:
        raise ValueError("there is no CBAM in this state dict, or one without spatial gate, which is another function")
    prefixes = [name.removesuffix(ends[layout]) for name in state if _is_or_ends(name, ends[layout])]
    translated = dict(state)
    for prefix in prefixes:
        module = {name: translated.pop(prefix + theirs, None) for name, theirs in _LAYOUTS[layout].items()}
        for name, tensor in _completed(module, prefix, turn=(layout == "timm") != (to == "timm")).items():
            if name in ("fc1.weight", "fc2.weight"):  # timm's are 1×1 convolutions
                tensor = tensor.reshape(*tensor.shape[:2], *(1, 1) * (to == "timm"))
            translated[prefix + _LAYOUTS[to][name]] = tensor
    return translated


def _completed(module: dict[str, Tensor | None], prefix: str, turn: bool) -> dict[str, Tensor]:
    """One module's tensors by our names, with zeros where it had none; refuses what is another function."""
    for fc in ("fc1", "fc2"):
        weight = module[f"{fc}.weight"]
        if weight is not None and module[f"{fc}.bias"] is None:
            module[f"{fc}.bias"] = weight.new_zeros(len(weight))
    if module["norm.num_batches_tracked"] is None:  # torch had none when the published weights were made
        module["norm.num_batches_tracked"] = torch.tensor(0)
    found = {name: tensor for name, tensor in module.items() if tensor is not None}
    if missing := [name for name in module if name not in found]:
        raise ValueError(f"the CBAM at {prefix!r} lacks what {', '.join(missing)} is here, so it is another function")
    maps = found["spatial.weight"].shape[1]
    if maps != 2:
        raise ValueError(
            f"the spatial gate at {prefix!r} reads {maps} map, not maximum and mean: timm's LightCbamModule is another "
            "function and can't be carried over"
        )
    return found | {"spatial.weight": found["spatial.weight"].flip(1)} if turn else found


def _is_or_ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
