"""Bottleneck ResNets with another squeeze (channel squeezing mode), or with PiX behind it (downscaling mode)."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_model_deprecations
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..layers import PiX, create_squeeze
from ..layers._calls import is_intercepted
from ..layers._input import lacks_batch
from ..layers._shared_passes import add_and_rectify, may_share, squeeze
from ..ops._watching import plain
from ..published import accept_published_names

_INNER_LAYERS = ("conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3", "se", "drop_path")


class SqueezeBottleneck(Bottleneck):
    """timm's bottleneck with [1×1 squeeze, BatchNorm, ReLU] replaced; all else, and every name, stays.

    The reduction is the squeeze's own ratio: 1 in the first block of stage 1 of a ResNet-50, 2 in the first block of
    the later stages, 4 elsewhere. With PiX ``conv1.weight`` has the shape it has in the original network.

    Args:
        squeeze: what takes its place, by its name in :func:`downmix.create_squeeze`.
        squeeze_args: options of that, such as ``{"gate": "tanh"}``.
        inplanes, planes, …: timm's.

    Source:
        Kumar et al., *Pick-or-Mix*, CVPR 2024, supplement figure 1a.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        *args: Any,
        squeeze: str,
        squeeze_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(inplanes, planes, *args, **kwargs)
        conv: Any = self.conv1
        reduction, remainder = divmod(inplanes, conv.out_channels)
        if remainder:
            raise ValueError(
                f"{squeeze} squeezes by an integer ratio, got {inplanes} channels to {conv.out_channels}; "
                "choose widths that divide, or keep the plain bottleneck for this network"
            )
        options = {"device": conv.weight.device, "dtype": conv.weight.dtype, **(squeeze_args or {})}
        self.conv1 = create_squeeze(squeeze, inplanes, reduction, **options)
        self.bn1 = nn.Identity()
        self.act1 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return add_and_rectify(*self.forward_unfinished([x])) if _unwatched(x) else super().forward(x)

    def forward_unfinished(self, maps: list[Tensor]) -> list[Tensor]:
        """Where nobody watches: two maps whose sum's ReLU is the output, or the output itself.

        The input comes likewise, so that the sum's end and what reads it first share their passes. It is taken out of
        its list, so that nobody holds a shortcut that has been added.
        """
        pix: Any = self.conv1
        joins = self._can_join() and plain((pix.weight, *maps))
        if not joins or lacks_batch(pix, maps[0], pix.in_channels):
            maps[:] = [add_and_rectify(*maps)]
            return [super().forward(*maps)]
        x, shortcut = squeeze(pix, *maps)
        maps.clear()
        layers = self._modules  # nn.Module's own search takes longer than some of them
        for name in _INNER_LAYERS:
            layer: Any = layers[name] if name in layers else getattr(self, name)
            x = x if layer is None else layer(x)
        return [x, shortcut if self.downsample is None else self.downsample(shortcut)]

    def _can_join(self) -> bool:
        """Whether nobody sees that the first layers and the last ones don't run by themselves."""
        find = self._modules.get
        pix: Any = find("conv1")
        relu: Any = find("act3")
        if not (_is_untouched(pix, PiX) and pix.is_plain and _is_untouched(relu, nn.ReLU)):
            return False
        # Who keeps a map from in here would be given the gradient of some of its readers alone, or find a ReLU's output
        # where that ReLU left the sum.
        if (torch.is_grad_enabled() or not relu.inplace) and _may_be_kept(self):
            return False
        return _is_untouched(find("bn1"), nn.Identity) and _is_untouched(find("act1"), nn.Identity)


class SqueezeStage(nn.Sequential):
    """A stage of blocks that leave their sums to the next: nobody can see or write over these in between."""

    def forward(self, input: Tensor) -> Tensor:
        maps, free = [input], _unwatched(input)
        block: Any
        for block in self:
            if free and _is_untouched(block, SqueezeBottleneck):
                maps = block.forward_unfinished(maps)
            else:
                maps = [add_and_rectify(*maps)]
                maps = [block(*maps)]
        return add_and_rectify(*maps)


def join_stages(network: nn.Module) -> None:
    """Lets the blocks of a timm ResNet with PiX squeezes share passes over their maps, in training and inference.

    Networks of this package do that already; one that :func:`downmix.convert` changed does it from then on. Results,
    names and hooks stay as they are; only the classes of blocks and stages change, to subclasses of theirs.

    Args:
        network: is changed in place; what has no such blocks stays as it is.

    Example:
        >>> import timm, torch, downmix
        >>> network, _ = downmix.convert(timm.create_model("resnet26"), example_input=torch.zeros(1, 3, 64, 64))
        >>> join_stages(network)
        >>> type(network.layer2).__name__
        'SqueezeStage'
    """
    for stage in network.modules():
        if type(stage) is nn.Sequential:
            for block in stage:
                if type(block) is Bottleneck and isinstance(block.conv1, PiX):
                    block.__class__ = SqueezeBottleneck
            if any(isinstance(block, SqueezeBottleneck) for block in stage):
                stage.__class__ = SqueezeStage


def _unwatched(x: Tensor) -> bool:
    return may_share(x) and not torch_module._has_any_global_hook()


def _may_be_kept(module: nn.Module) -> bool:
    """Whether a hook, a forward or a class of somebody else's within a module may keep what it sees."""
    for inner in module._modules.values():  # nn.Module.modules takes more than twice as long
        if inner is not None and (is_intercepted(inner) or _is_foreign(type(inner)) or _may_be_kept(inner)):
            return True
    return False


@functools.cache
def _is_foreign(kind: type[nn.Module]) -> bool:
    return kind.__module__.partition(".")[0] not in ("torch", "timm", "downmix")


def _is_untouched(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a module is of that very class, and to call it runs that class's forward and no hook of its own.

    Hooks on gradients count too, as blocks train; and who had its calls compiled wants that to run.
    """
    if type(module) is not kind or is_intercepted(module) or module._compiled_call_impl is not None:
        return False
    return not (module._backward_hooks or module._backward_pre_hooks)


class DownscaledBottleneck(Bottleneck):
    """timm's bottleneck with PiX in front of the 3×3, which is narrower by ``reduction``, as is what follows it.

    So the 3×3's input and output and the next 1×1's input are divided. The keys of PiX and of the 3×3 begin with
    ``conv2.pix`` and ``conv2.conv``; all others stay.

    Args:
        reduction: the divisor, and PiX's reduction.
        inplanes, planes, …: timm's.

    Source:
        Kumar et al., *Pick-or-Mix*, CVPR 2024, supplement figure 1b: shown there only, so this is our reading.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        *args: Any,
        reduction: int,
        base_width: int = 64,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        **kwargs: Any,
    ):
        narrow, remainder = divmod(base_width, reduction)
        if remainder:
            raise ValueError(f"reduction must divide base_width, got {reduction} and {base_width}")
        # All inner widths of the block shrink, then the squeeze gets its own back.
        super().__init__(inplanes, planes, *args, base_width=narrow, norm_layer=norm_layer, **kwargs)
        conv: Any = self.conv2
        width = conv.in_channels * reduction
        factory: Any = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False, **factory)
        self.bn1 = norm_layer(width, **factory)
        self.conv2 = nn.Sequential(OrderedDict(pix=PiX(width, reduction, **factory), conv=conv))


def cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's description of a network whose weights are nowhere published."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "pix_resnet50": cfg(),
        "pix_resnet101": cfg(),
        "pix_resnet152": cfg(),
        "resnet50_r8": cfg(),
        "pix_resnet50_r8": cfg(),
        "pix_seresnet50": cfg(),
        "dwp_resnet50": cfg(),
        "groupconv_resnet50": cfg(),
        "fbs_resnet50": cfg(),
        "pix_resnet50_down2": cfg(),
        "pix_resnet50_down4": cfg(),
        "test_pix_resnet": cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, own: dict[str, Any], kwargs: dict[str, Any]) -> ResNet:
    defaults = {"layers": (3, 4, 6, 3), "block": SqueezeBottleneck, "block_args": {"squeeze": "pix"}}
    model = build_model_with_cfg(ResNet, variant, pretrained, **(defaults | own | kwargs))
    join_stages(model)
    model.register_load_state_dict_pre_hook(accept_published_names)
    return model


@register_model
def pix_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 (v1.5) with PiX squeezes."""
    return _create("pix_resnet50", pretrained, {}, kwargs)


@register_model
def pix_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101 (v1.5) with PiX squeezes."""
    return _create("pix_resnet101", pretrained, {"layers": (3, 4, 23, 3)}, kwargs)


@register_model
def pix_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-152 (v1.5) with PiX squeezes."""
    return _create("pix_resnet152", pretrained, {"layers": (3, 8, 36, 3)}, kwargs)


@register_model
def resnet50_r8(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 whose blocks squeeze to an eighth of their output, not to a quarter."""
    return _create("resnet50_r8", pretrained, {"block": Bottleneck, "block_args": {}, "base_width": 32}, kwargs)


@register_model
def pix_resnet50_r8(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The same with PiX squeezes: reduction 2 in the first block, 4 in the first of later stages, 8 elsewhere."""
    return _create("pix_resnet50_r8", pretrained, {"base_width": 32}, kwargs)


@register_model
def pix_seresnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """timm's seresnet50 (SE of ratio 16 after the last BatchNorm of a block) with PiX squeezes."""
    return _create("pix_seresnet50", pretrained, {"block_args": {"squeeze": "pix", "attn_layer": "se"}}, kwargs)


@register_model
def dwp_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with channel pooling (the maximum) in place of every squeeze."""
    return _create("dwp_resnet50", pretrained, {"block_args": {"squeeze": "dwp"}}, kwargs)


@register_model
def groupconv_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with squeezes in 4 groups and a channel shuffle behind each."""
    return _create("groupconv_resnet50", pretrained, {"block_args": {"squeeze": "group"}}, kwargs)


@register_model
def fbs_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 whose squeezes keep the most salient channels, as FACS adapted FBS."""
    return _create("fbs_resnet50", pretrained, {"block_args": {"squeeze": "fbs"}}, kwargs)


@register_model
def pix_resnet50_down2(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with PiX in front of every 3×3 convolution, which is half as wide."""
    own = {"block": DownscaledBottleneck, "block_args": {"reduction": 2}}
    return _create("pix_resnet50_down2", pretrained, own, kwargs)


@register_model
def pix_resnet50_down4(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with PiX in front of every 3×3 convolution, which is a quarter as wide."""
    own = {"block": DownscaledBottleneck, "block_args": {"reduction": 4}}
    return _create("pix_resnet50_down4", pretrained, own, kwargs)


@register_model
def test_pix_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A ResNet with PiX squeezes for tests: one block a stage, 32 to 256 channels."""
    return _create("test_pix_resnet", pretrained, {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}, kwargs)


# The names of the published code. timm keeps them out of its lists, and says which name is meant when one is used.
register_model_deprecations(
    __name__,
    {
        "PiXResNet50_cs": "pix_resnet50",
        "PiXResNet101_cs": "pix_resnet101",
        "PiXResNet152_cs": "pix_resnet152",
    },
)
