"""timm's networks with SoftPool for the max pools of their stems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import densenet, register_model, resnet
from timm.models.inception_v3 import inception_v3
from torch import nn

from ..convert import convert_like
from ..layers import SoftPool2d


def _soften(baseline: Callable[..., nn.Module], pretrained: bool, *, pool: str = "soft", **kwargs: Any) -> nn.Module:
    """timm's network with its max pools replaced; these networks have them in their stem alone.

    Args:
        baseline: timm's function.
        pretrained: load timm's weights, which were trained with max pooling; SoftPool itself has none.
        pool: ``"soft"`` keeps the windows, 3×3 with stride 2; ``"soft_2x2"`` is the source's 2×2, in Inception-v3 too,
            where even maps then come out larger by 1.
        **kwargs: as timm's function takes them.

    Source:
        Stergiou, Poppe, Kalliatakis, *Refining activation downsampling with SoftPool*, ICCV 2021, section 4. Deviation:
        the windows of the networks replaced are the default, so that the outputs of the stem keep their size.
    """
    network = baseline(pretrained, **kwargs)
    pools = [name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]
    config = {"squeeze": None, "pool": pool, "layers": {name: [] for name in pools}}
    return convert_like(network, config, pool=_side_by_side if pool == "soft_2x2" else None, inplace=True)


def _side_by_side(pool: nn.MaxPool2d) -> nn.Module:
    # Rounded up where the old windows reached into the padding. The word of convert leaves Inception-v3's.
    return SoftPool2d(2, ceil_mode=bool(pool.padding))


@register_model
def softpool_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnet18, pretrained, **kwargs)


@register_model
def softpool_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnet34, pretrained, **kwargs)


@register_model
def softpool_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnet50, pretrained, **kwargs)


@register_model
def softpool_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnet101, pretrained, **kwargs)


@register_model
def softpool_resnet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-152 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnet152, pretrained, **kwargs)


@register_model
def softpool_resnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-50 32×4d with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnext50_32x4d, pretrained, **kwargs)


@register_model
def softpool_resnext101_32x8d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-101 32×8d with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.resnext101_32x8d, pretrained, **kwargs)


@register_model
def softpool_wide_resnet50_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Wide ResNet-50-2 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(resnet.wide_resnet50_2, pretrained, **kwargs)


@register_model
def softpool_densenet121(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-121 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(densenet.densenet121, pretrained, **kwargs)


@register_model
def softpool_densenet161(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-161 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(densenet.densenet161, pretrained, **kwargs)


@register_model
def softpool_densenet169(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-169 with SoftPool in its stem; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(densenet.densenet169, pretrained, **kwargs)


@register_model
def softpool_inception_v3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Inception-v3 with SoftPool in its stem, for both max pools there; ``pool="soft_2x2"`` for windows of 2×2."""
    return _soften(inception_v3, pretrained, **kwargs)
