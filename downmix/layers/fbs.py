"""Feature boosting and suppression: a convolution, or a squeeze, that keeps the channels predicted to matter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.pix import check_reduction
from ._global_mean import global_mean
from ._input import check_count, lacks_batch


class ChannelSaliency(nn.Module):
    r"""Predicts from a map's global mean how much each channel matters: :math:`g = \mathrm{ReLU}(\varphi s + \rho)`.

    The g of the last forward pass in training is kept for :func:`fbs_penalty`.

    Args:
        in_channels (int): channels of the map.
        out_channels (int): channels to judge.
        normalize (bool): divide g by its sum and multiply it by ``out_channels``; others needed it against NaN. The
            penalty is that of g before, as the sum of what comes out never changes.
        device, dtype: of the parameters.

    Shape:
        [B, in_channels, H, W] to [B, out_channels].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, device=device, dtype=dtype)
        self.normalize = normalize
        self._seen: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.linear.weight, std=0.05, a=-0.1, b=0.1)  # torch's own bounds are 40 deviations away
        nn.init.ones_(self.linear.bias)  # so that training starts with every channel let through

    def forward(self, x: Tensor) -> Tensor:
        g = torch.relu(self.linear(global_mean(x)))
        if self.training and torch.is_grad_enabled():
            self._seen = g
        if self.normalize:
            # An all-zero g stays zero: its sum is no divisor.
            g = g / g.sum(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny) * g.shape[1]
        return g

    def take_seen(self) -> Tensor | None:
        """The g of the last forward pass in training, [B, out_channels]; handed out once."""
        seen, self._seen = self._seen, None
        return seen

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": None}  # a tensor inside a graph can be neither copied nor pickled


class FBSConv2d(nn.Module):
    r"""A convolution with BatchNorm whose output channels are scaled by their predicted saliency, or switched off.

    .. math:: Y = m \cdot g \cdot \mathrm{norm}(W * X) + m \cdot \beta

    where g is predicted from X (:class:`ChannelSaliency`), and the mask m keeps the ceil(density · C) highest of g;
    of equal ones the first. No gradient flows through the choice. The network's own ReLU follows. All channels are
    computed: what a sparse implementation would save is not saved here.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as those of ``nn.Conv2d``.
        density (float): d, the share of channels kept, above 0 and at most 1.
        normalize (bool): see :class:`ChannelSaliency`.
        device, dtype: of the parameters.

    Shape:
        [B, in_channels, H, W] or [in_channels, H, W] to that of ``nn.Conv2d``.

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if ``density`` is out of range, or the input has another number of channels.

    Example:
        >>> y = FBSConv2d(3, 8, 3, padding=1, density=0.5)(torch.randn(1, 3, 5, 5))
        >>> y.shape, int((y != 0).any(3).any(2).sum())
        (torch.Size([1, 8, 5, 5]), 4)

    Source:
        Gao et al., *Dynamic Channel Pruning: Feature Boosting and Suppression*, ICLR 2019, arXiv 1810.05331; official
        code deep-fry/mayo, ``mayo/net/tf/gate``, commit 7d2dd3e. Deviations from that code: φ starts from a truncated
        normal of 0.05 and not 0.01, β from 0 and not 0.1; β is not multiplied by g, as in the equation; exactly k
        channels stay where several are equal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        *,
        density: float = 0.5,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory: Any = {"device": device, "dtype": dtype}
        self.in_channels, self.out_channels, self.density = in_channels, out_channels, check_density(density)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False, **factory)
        self.norm = nn.BatchNorm2d(out_channels, affine=False, **factory)
        self.saliency = ChannelSaliency(in_channels, out_channels, normalize=normalize, **factory)
        self.bias = nn.Parameter(torch.empty(out_channels, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)  # the layers inside have their own

    @property
    def kept(self) -> int:
        """Channels that stay, ceil(density · C)."""
        return math.ceil(round(self.density * self.out_channels, 6))  # 0.55 · 100 is a bit above 55

    def forward(self, x: Tensor) -> Tensor:
        if lacks_batch(self, x, self.in_channels):
            return FBSConv2d.forward(self, x.unsqueeze(0)).squeeze(0)
        g = self.saliency(x)
        mask = torch.zeros_like(g).scatter(1, highest(g, self.kept), 1.0)
        scale, shift = (mask * g)[:, :, None, None], (mask * self.bias)[:, :, None, None]
        return scale * self.norm(self.conv(x)) + shift

    def extra_repr(self) -> str:
        return f"density={self.density}"


class FBSSqueeze(nn.Module):
    r"""Squeezes C channels into C / reduction by keeping the most salient ones, scaled by their saliency.

    The kept channels stand in their own order. As which they are differs between images, a convolution behind can't
    know what it reads: the source saw this squeeze train badly. See :class:`FBSConv2d` for the choice.

    Args:
        in_channels (int): C, a multiple of ``reduction``.
        reduction (int): input channels per output channel.
        normalize (bool): see :class:`ChannelSaliency`.
        device, dtype: of the parameters.

    Shape:
        [B, C, H, W] or [C, H, W] to [B, C / reduction, H, W] or [C / reduction, H, W].

    Raises:
        TypeError: if the input is no floating-point tensor.
        ValueError: if ``reduction`` does not divide ``in_channels``, or the input has another number of channels.

    Example:
        >>> FBSSqueeze(64, reduction=4)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 16, 7, 7])

    Source:
        FACS, section 4.2.1, "Dynamic Pruning vs FACS"; its 37M parameters for ResNet-50 fit a saliency of C × C.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int,
        *,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_count("in_channels", in_channels)
        if in_channels % check_reduction(reduction):
            raise ValueError(f"reduction must divide in_channels, got {reduction} and {in_channels}; use PiX instead")
        self.in_channels, self.out_channels, self.reduction = in_channels, in_channels // reduction, reduction
        self.saliency = ChannelSaliency(in_channels, in_channels, normalize=normalize, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if lacks_batch(self, x, self.in_channels):
            return FBSSqueeze.forward(self, x.unsqueeze(0)).squeeze(0)
        g = self.saliency(x)
        kept = highest(g, self.out_channels)
        where = kept[:, :, None, None].expand(-1, -1, x.shape[2], x.shape[3])
        return x.gather(1, where) * g.gather(1, kept)[:, :, None, None]

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, reduction={self.reduction}"


def highest(g: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest values of each row, ascending; of equal values the first, on every device."""
    return g.detach().argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values


def fbs_penalty(model: nn.Module) -> Tensor:
    r"""The source's regularisation, to be added to the loss times λ: :math:`\sum_l \mathrm{mean}_B \sum_C |g_l|`.

    The mean over the images of the batch makes λ independent of its size, and the same under
    ``DistributedDataParallel``, which averages the gradients of its processes as it does those of the loss.

    Args:
        model (nn.Module): a network with FBS layers, perhaps wrapped; it has run forward in training mode since the
            last call. Of a layer that ran more than once the last run counts.

    Returns:
        Tensor: a scalar with gradients. The network keeps nothing of that forward pass afterwards.

    Raises:
        ValueError: if there is no FBS layer in ``model``, or one has not run, with its name.

    Example:
        >>> network = nn.Sequential(FBSConv2d(3, 8, 3), nn.ReLU(), FBSConv2d(8, 8, 3))
        >>> loss = network(torch.randn(2, 3, 9, 9)).square().mean() + 1e-8 * fbs_penalty(network)
        >>> loss.backward()

    Source:
        Gao et al., as in :class:`FBSConv2d`.
    """
    seen = {name: layer.take_seen() for name, layer in model.named_modules() if isinstance(layer, ChannelSaliency)}
    if not seen:
        raise ValueError(f"{type(model).__name__} has no FBS layer, so there is nothing to penalise")
    if late := [name for name, g in seen.items() if g is None]:
        raise ValueError(
            f"{late[0] or 'the layer'} has not run since the last penalty: call fbs_penalty once after each forward "
            "pass in training mode, with gradients enabled and outside of nn.DataParallel"
        )
    # g is not negative, so its sum is that of |g|.
    return torch.stack([g.sum(1).mean() for g in seen.values() if g is not None]).sum()


def set_density(model: nn.Module, density: float) -> None:
    """Lets every :class:`FBSConv2d` in ``model`` keep ceil(density · C) of its channels from now on.

    A squeeze (:class:`FBSSqueeze`) stays as it is: how many channels it keeps is how many it gives.

    Args:
        model (nn.Module): a network with such layers.
        density (float): d, above 0 and at most 1.

    Raises:
        ValueError: if there is no such layer, or ``density`` is out of range.
    """
    layers = [module for module in model.modules() if isinstance(module, FBSConv2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no FBSConv2d, whose density could be set")
    for layer in layers:
        layer.density = check_density(density)


def linear_density(epoch: float, epochs: float, density: float) -> float:
    """A schedule for :func:`set_density`: 1 at epoch 0, falling evenly to ``density`` at ``epochs``, where it stays.

    Args:
        epoch (float): epochs done, from 0.
        epochs (float): how many the fall takes, above 0.
        density (float): at its end, above 0 and at most 1.

    Raises:
        ValueError: if ``epochs`` or ``density`` is out of range.

    Example:
        >>> [linear_density(epoch, 4, 0.5) for epoch in range(6)]
        [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]

    Source:
        Gao et al. lower the density in the course of training; the straight line is ours.
    """
    if not epochs > 0:
        raise ValueError(f"epochs must be above 0, got {epochs}")
    return 1 + (check_density(density) - 1) * min(epoch / epochs, 1)


def check_density(density: float) -> float:
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    return density
