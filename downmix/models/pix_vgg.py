"""VGG-16 with BatchNorm and one linear head: plain, with 1×1 squeezes, downscaled, dynamically pruned, and with FBS."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model, vgg
from torch import Tensor, nn

from ..layers import FBSConv2d, create_squeeze
from .pix_resnet import cfg

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# What a layer consists of up to its ReLU, by name; its "conv" says how many channels it gives. Called with the channels
# in and out, and with whether the layer is the first of its stage, and of the network.
Layer = Callable[..., dict[str, Any]]


def plain(inputs: int, outputs: int, stage_start: bool, start: bool, **factory: Any) -> dict[str, Any]:
    """3×3 convolution and BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **factory)
    return {"conv": conv, "norm": nn.BatchNorm2d(outputs, **factory)}


def squeezed(
    inputs: int, outputs: int, stage_start: bool, start: bool, *, squeeze: str, reduction: int, **factory: Any
) -> dict[str, Any]:
    """A squeeze in front of every convolution but the first of a stage."""
    if stage_start:
        return plain(inputs, outputs, stage_start, start, **factory)
    layer = {"squeeze": create_squeeze(squeeze, inputs, reduction, **factory)}
    return layer | plain(inputs // reduction, outputs, stage_start, start, **factory)


def pruned(
    inputs: int, outputs: int, stage_start: bool, start: bool, *, reduction: int, **factory: Any
) -> dict[str, Any]:
    """PiX in front of every convolution but the network's first, which then reads fewer channels."""
    return squeezed(inputs, outputs, start, start, squeeze="pix", reduction=reduction, **factory)


def downscaled(
    inputs: int, outputs: int, stage_start: bool, start: bool, *, reduction: int, **factory: Any
) -> dict[str, Any]:
    """The same, and every convolution but the network's first gives fewer channels too."""
    return pruned(
        inputs, outputs if start else outputs // reduction, stage_start, start, reduction=reduction, **factory
    )


def boosted(
    inputs: int, outputs: int, stage_start: bool, start: bool, *, density: float, **factory: Any
) -> dict[str, Any]:
    """An FBS convolution, its norm inside."""
    return {"conv": FBSConv2d(inputs, outputs, 3, padding=1, density=density, **factory)}


class VGG(vgg.VGG):
    """timm's VGG with global average pooling and one linear head in place of its 4096 wide layers.

    ``features`` holds one module for each 3×3 convolution with what belongs to it, and one for each pool.

    Args:
        layer: makes one convolution with what belongs to it, such as :func:`plain`.
        stages: channels of each convolution, a tuple for each stage.
        num_classes, in_chans, output_stride, global_pool, drop_rate, device, dtype: timm's; the stride must be 32.

    Source:
        FACS, section 3.5 and table 4, and Kumar et al., *Pick-or-Mix*, CVPR 2024, supplement figure 1c. Squeezes: the
        text says "before each 3×3 convolution layer except the first", the printed parameters fit the first of each
        stage. Downscaling and pruning are shown in the figure only: this is our reading of it. The 3×3 convolutions
        have no bias, as BatchNorm follows.
    """

    def __init__(
        self,
        layer: Layer,
        stages: tuple[tuple[int, ...], ...] = STAGES,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        if output_stride != 32:
            raise ValueError(f"a VGG has the output stride 32, got {output_stride}; a ResNet takes 8 and 16 as well")
        nn.Module.__init__(self)  # not VGG's: the head it makes has 120 million parameters
        factory: Any = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False
        self.features = nn.Sequential()
        self.feature_info, self.feature_ends = [], []
        width = in_chans
        for stage, widths in enumerate(stages):
            for i, outputs in enumerate(widths):
                modules = layer(width, outputs, i == 0, stage == i == 0, **factory)
                self.features.append(nn.Sequential(OrderedDict(modules | {"act": nn.ReLU(inplace=True)})))
                width = modules["conv"].out_channels
            self._end_stage(width, 2**stage)
            self.features.append(nn.MaxPool2d(2))
        self._end_stage(width, 2 ** len(stages))
        self.num_features = width
        self.pre_logits = nn.Identity()
        self.head = ClassifierHead(width, num_classes, global_pool, drop_rate, **factory)
        self.head_hidden_size = width * self.head.global_pool.feat_mult()
        self._initialize()

    def _end_stage(self, width: int, reduction: int) -> None:
        last = len(self.features) - 1
        self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"features.{last}"})
        self.feature_ends.append(last)

    def _initialize(self) -> None:
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=0.01)
            nn.init.zeros_(self.head.fc.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        return checkpoint_seq(self.features, x) if self.grad_checkpointing else self.features(x)


_cfgs: dict[str, Any] = {
    name: cfg(first_conv="features.0.conv.conv" if name.startswith("fbs") else "features.0.conv", classifier="head.fc")
    for name in (
        "vgg16_gap",
        "vgg16_1x1_r2",
        "vgg16_1x1_r4",
        "pix_vgg16_1x1_r2",
        "pix_vgg16_1x1_r4",
        "pix_vgg16_down2",
        "pix_vgg16_down4",
        "pix_vgg16_prune1",
        "pix_vgg16_prune2",
        "pix_vgg16_prune4",
        "fbs_vgg16_d100",
        "fbs_vgg16_d50",
        "fbs_vgg16_d25",
        "test_pix_vgg",
    )
}
_cfgs["test_pix_vgg"] |= {"input_size": (3, 64, 64), "pool_size": (2, 2)}
default_cfgs = generate_default_cfgs(_cfgs)


def _create(variant: str, pretrained: bool, layer: Layer, kwargs: dict[str, Any]) -> VGG:
    features: dict[str, Any] = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3, 4, 5)}
    return build_model_with_cfg(VGG, variant, pretrained, feature_cfg=features, layer=layer, **kwargs)


@register_model
def vgg16_gap(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 with BatchNorm, global average pooling and one linear head: the baseline."""
    return _create("vgg16_gap", pretrained, plain, kwargs)


@register_model
def vgg16_1x1_r2(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16-1×1: a 1×1 squeeze by 2 in front of every 3×3 convolution but the first of a stage."""
    return _create("vgg16_1x1_r2", pretrained, partial(squeezed, squeeze="conv", reduction=2), kwargs)


@register_model
def vgg16_1x1_r4(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16-1×1: a 1×1 squeeze by 4 in front of every 3×3 convolution but the first of a stage."""
    return _create("vgg16_1x1_r4", pretrained, partial(squeezed, squeeze="conv", reduction=4), kwargs)


@register_model
def pix_vgg16_1x1_r2(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16-1×1 with PiX squeezes by 2."""
    return _create("pix_vgg16_1x1_r2", pretrained, partial(squeezed, squeeze="pix", reduction=2), kwargs)


@register_model
def pix_vgg16_1x1_r4(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16-1×1 with PiX squeezes by 4."""
    return _create("pix_vgg16_1x1_r4", pretrained, partial(squeezed, squeeze="pix", reduction=4), kwargs)


@register_model
def pix_vgg16_down2(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 with PiX by 2 in front of every convolution but the first, which gives half of the channels too."""
    return _create("pix_vgg16_down2", pretrained, partial(downscaled, reduction=2), kwargs)


@register_model
def pix_vgg16_down4(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 with PiX by 4 in front of every convolution but the first, which gives a quarter of the channels too."""
    return _create("pix_vgg16_down4", pretrained, partial(downscaled, reduction=4), kwargs)


@register_model
def pix_vgg16_prune1(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 with PiX as a gate in front of every convolution but the first."""
    return _create("pix_vgg16_prune1", pretrained, partial(pruned, reduction=1), kwargs)


@register_model
def pix_vgg16_prune2(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 with PiX in front of every convolution but the first, which reads half of the channels."""
    return _create("pix_vgg16_prune2", pretrained, partial(pruned, reduction=2), kwargs)


@register_model
def pix_vgg16_prune4(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 with PiX in front of every convolution but the first, which reads a quarter of the channels."""
    return _create("pix_vgg16_prune4", pretrained, partial(pruned, reduction=4), kwargs)


@register_model
def fbs_vgg16_d100(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 whose convolutions scale their channels by their saliency."""
    return _create("fbs_vgg16_d100", pretrained, partial(boosted, density=1.0), kwargs)


@register_model
def fbs_vgg16_d50(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 whose convolutions keep the more salient half of their channels."""
    return _create("fbs_vgg16_d50", pretrained, partial(boosted, density=0.5), kwargs)


@register_model
def fbs_vgg16_d25(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-16 whose convolutions keep the most salient quarter of their channels."""
    return _create("fbs_vgg16_d25", pretrained, partial(boosted, density=0.25), kwargs)


@register_model
def test_pix_vgg(pretrained: bool = False, **kwargs: Any) -> VGG:
    """A VGG with PiX squeezes for tests: two convolutions a stage, 8 to 64 channels."""
    stages = {"stages": ((8, 8), (16, 16), (32, 32), (64, 64), (64, 64))}
    return _create("test_pix_vgg", pretrained, partial(squeezed, squeeze="pix", reduction=2), stages | kwargs)
