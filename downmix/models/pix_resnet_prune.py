"""Basic-block ResNets whose convolutions read fewer channels (dynamic channel pruning mode), by PiX or by FBS."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ..layers import FBSConv2d, PiX
from .pix_resnet import cfg


class PrunedResNet(ResNet):
    """timm's ResNet with PiX in front of every 3×3 convolution but the first, which reads its fewer channels.

    The keys of PiX and of the convolution begin with ``conv1.pix`` and ``conv1.conv`` (or ``conv2``).

    Args:
        reduction: PiX's; with 1 it is a gate on each channel, and nothing is saved.
        block, layers, …: timm's.

    Source:
        Kumar et al., *Pick-or-Mix*, CVPR 2024, supplement figure 1d: shown there only, so this is our reading.
    """

    def __init__(self, *args: Any, reduction: int, zero_init_last: bool = True, **kwargs: Any):
        super().__init__(*args, zero_init_last=False, **kwargs)
        blocks = [module for module in self.modules() if isinstance(module, BasicBlock)]
        places = [(block, name) for block in blocks for name in ("conv1", "conv2")]
        for block, name in places[1:]:
            options = _options(getattr(block, name))
            factory = {key: options[key] for key in ("device", "dtype")}
            pix = PiX(options.pop("in_channels"), reduction, **factory)
            conv = nn.Conv2d(pix.out_channels, bias=False, **options)
            setattr(block, name, nn.Sequential(OrderedDict(pix=pix, conv=conv)))
        self.init_weights(zero_init_last)


class FBSBasicBlock(BasicBlock):
    """timm's basic block with :class:`downmix.FBSConv2d` in place of both convolutions and their norms.

    Source:
        deep-fry/mayo, ``models/gate/resnet18.yaml``, commit 0007b5a, which gates the stem and the shortcuts as well: we
        leave those alone, as PiX does that stands beside it.
    """

    def __init__(self, *args: Any, density: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conv1 = FBSConv2d(density=density, **_options(self.conv1))
        self.conv2 = FBSConv2d(density=density, **_options(self.conv2))
        self.bn1 = nn.Identity()
        self.bn2 = nn.Identity()


def _options(conv: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(conv, name) for name in names} | {"device": conv.weight.device, "dtype": conv.weight.dtype}


default_cfgs = generate_default_cfgs(
    {
        "pix_resnet18_prune1": cfg(),
        "pix_resnet18_prune2": cfg(),
        "pix_resnet18_prune4": cfg(),
        "fbs_resnet18_d100": cfg(),
        "fbs_resnet18_d50": cfg(),
        "fbs_resnet18_d25": cfg(),
        "test_pix_resnet_prune": cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, own: dict[str, Any], kwargs: dict[str, Any]) -> ResNet:
    options = {"block": BasicBlock, "layers": (2, 2, 2, 2)} | own | kwargs
    return build_model_with_cfg(PrunedResNet if "reduction" in options else ResNet, variant, pretrained, **options)


def _create_fbs(variant: str, pretrained: bool, density: float, kwargs: dict[str, Any]) -> ResNet:
    return _create(variant, pretrained, {"block": FBSBasicBlock, "block_args": {"density": density}}, kwargs)


@register_model
def pix_resnet18_prune1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with PiX as a gate in front of every 3×3 convolution but the first."""
    return _create("pix_resnet18_prune1", pretrained, {"reduction": 1}, kwargs)


@register_model
def pix_resnet18_prune2(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with PiX in front of every 3×3 convolution but the first, which reads half the channels."""
    return _create("pix_resnet18_prune2", pretrained, {"reduction": 2}, kwargs)


@register_model
def pix_resnet18_prune4(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with PiX in front of every 3×3 convolution but the first, which reads a quarter of the channels."""
    return _create("pix_resnet18_prune4", pretrained, {"reduction": 4}, kwargs)


@register_model
def fbs_resnet18_d100(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 whose 3×3 convolutions scale their channels by their saliency."""
    return _create_fbs("fbs_resnet18_d100", pretrained, 1.0, kwargs)


@register_model
def fbs_resnet18_d50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 whose 3×3 convolutions keep the more salient half of their channels."""
    return _create_fbs("fbs_resnet18_d50", pretrained, 0.5, kwargs)


@register_model
def fbs_resnet18_d25(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 whose 3×3 convolutions keep the most salient quarter of their channels."""
    return _create_fbs("fbs_resnet18_d25", pretrained, 0.25, kwargs)


@register_model
def test_pix_resnet_prune(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A ResNet of basic blocks with PiX in front of them, for tests: one block a stage, 8 to 64 channels."""
    own = {"reduction": 2, "layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
    return _create("test_pix_resnet_prune", pretrained, own, kwargs)
