import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import downmix
from downmix.layers.squeeze import SQUEEZES

# Each takes 8 channels, and no other number of them.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: downmix.create_squeeze(name, 8, 2) for name in SQUEEZES if name != "dwp"},
    "cbam": lambda: downmix.CBAM(8, 2),
    "squeeze_excite": lambda: downmix.SqueezeExcite(8, 2),
    "fbs_conv": lambda: downmix.FBSConv2d(8, 4, 3),
    "simplified_logit": lambda: downmix.SimplifiedLogit(8),
    "bottleneck_logit": lambda: downmix.BottleneckLogit(8, 4),
}
POOLS: dict[str, Callable[[], nn.Module]] = {
    "channel_pool": lambda: downmix.ChannelPool(2),
    "channel_pool_mean": lambda: downmix.ChannelPool(2, mode="mean"),
    "channel_pool_overlapping": lambda: downmix.ChannelPool(3, 2),
    "channel_pool_overlapping_mean": lambda: downmix.ChannelPool(3, 2, mode="mean"),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Any:
    return LAYERS[request.param]().eval()


@pytest.fixture(params=LAYERS | POOLS)
def layer_or_pool(request: pytest.FixtureRequest) -> Any:
    return (LAYERS | POOLS)[request.param]().eval()


def test_one_image_is_a_batch_of_one(layer_or_pool: Any) -> None:
    x = torch.randn(8, 6, 5)
    torch.testing.assert_close(layer_or_pool(x), layer_or_pool(x[None])[0])


def test_a_forward_around_the_layer_s_runs_once(layer_or_pool: Any) -> None:
    x, forward = torch.randn(8, 6, 5), layer_or_pool.forward
    expected = 2 * layer_or_pool(x)
    layer_or_pool.forward = lambda x: 2 * forward(x)
    torch.testing.assert_close(layer_or_pool(x), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e5m2, torch.float8_e4m3fn], ids=str)
def test_what_is_no_floating_point_tensor_is_refused(layer_or_pool: Any, dtype: torch.dtype) -> None:
    sentence = f"x must be a tensor of float16, bfloat16, float32 or float64, got {dtype}; convert it with .float()"
    with pytest.raises(TypeError, match=re.escape(sentence)):
        layer_or_pool(torch.ones(2, 8, 6, 6).to(dtype))


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 6), (2, 6, 6, 6), (2, 8, 6, 6, 6)], ids=str)
def test_other_shapes_are_refused(layer: Any, shape: tuple[int, ...]) -> None:
    sentence = f"{type(layer).__name__} of 8 channels takes [B, 8, H, W] or [8, H, W], got {list(shape)}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        layer(torch.randn(shape))


@pytest.mark.parametrize(("dims", "space"), [(1, "L"), (3, "D, H, W")])
def test_logits_in_other_dimensions(dims: int, space: str) -> None:
    sentence = f"SimplifiedLogit of 8 channels takes [B, 8, {space}] or [8, {space}], got [2, 8, 6, 6]"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        downmix.SimplifiedLogit(8, dims=dims)(torch.randn(2, 8, 6, 6))


MADE_OF: dict[str, Callable[[Any], nn.Module]] = {
    **{name: lambda count, name=name: downmix.create_squeeze(name, count, 2) for name in SQUEEZES if name != "dwp"},
    "cbam": lambda count: downmix.CBAM(count, 2),
    "cbam_reduction": lambda count: downmix.CBAM(8, count),
    "squeeze_excite": lambda count: downmix.SqueezeExcite(count, 2),
    "groups": lambda count: downmix.ConvSqueeze(8, 2, groups=count),
    "simplified_logit": lambda count: downmix.SimplifiedLogit(count),
    "bottleneck_logit": lambda count: downmix.BottleneckLogit(8, count),
}


@pytest.mark.parametrize("make", MADE_OF.values(), ids=MADE_OF)
def test_other_than_positive_integers_are_refused(make: Callable[[Any], nn.Module]) -> None:
    for count, error in ((0, ValueError), (-8, ValueError), (8.0, TypeError), ("8", TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"must be a positive integer, got {count!r}"):
            make(count)


SPACE_POOLS: dict[str, Callable[[], nn.Module]] = {
    "soft": lambda: downmix.SoftPool2d(3, 2, 1),
    "soft_1d": lambda: nn.Sequential(nn.Flatten(2), downmix.SoftPool1d(2)),
    "adaptive": lambda: downmix.AdaptiveSoftPool2d((3, 2)),
    "adaptive_uneven": lambda: downmix.AdaptiveSoftPool2d(4),
    "lip": lambda: downmix.LIPPool2d(2, logits=downmix.SimplifiedLogit(8)),
    "power": lambda: downmix.PowerAvgPool2d(2),
    "mixed": lambda: downmix.MixedPool2d(2),
    "s3": lambda: downmix.S3Pool2d(2),
    "stochastic": lambda: downmix.StochasticPool2d(2),
}


@pytest.mark.parametrize("name", [*LAYERS, *POOLS, *SPACE_POOLS])
def test_torch_fx_traces_every_layer(name: str) -> None:
    # Within a network, as torch.fx would take PiX's shortcut for given.
    layer, x = nn.Sequential((LAYERS | POOLS | SPACE_POOLS)[name]()).eval(), torch.rand(2, 8, 6, 6)
    traced = torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(traced(x), layer(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(x), layer(x))


@pytest.mark.parametrize("make", [*LAYERS.values(), lambda: downmix.MixedPool2d(2, alpha=0.25)], ids=[*LAYERS, "mixed"])
def test_what_was_made_without_memory_is_filled_by_reset_parameters(make: Callable[[], nn.Module]) -> None:
    """As FSDP and other loaders of large networks do it."""
    with torch.device("meta"):
        layer = make()
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    for module in layer.modules():
        if reset := getattr(module, "reset_parameters", None):
            reset()
    for name, parameter in layer.named_parameters():
        assert parameter.isfinite().all(), name
    if isinstance(layer, downmix.MixedPool2d):
        assert layer.alpha == 0.25
