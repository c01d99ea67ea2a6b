from typing import Any

import pytest
import torch
from torch import nn

import downmix
from downmix import create_pool
from downmix.layers.pools import POOLS

pytestmark = pytest.mark.usefixtures("without_kernels")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", POOLS)
def test_every_pool_halves_a_map_of_any_dimension(name: str, dims: int) -> None:
    x = torch.rand(2, 4, *[6] * dims, requires_grad=True)
    pool = create_pool(name, 2, dims=dims, **({"in_channels": 4} if name == "lip" else {}))
    assert isinstance(pool, POOLS[name][dims - 1])
    y = pool(x)
    assert y.shape == (2, 4, *[3] * dims)
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", POOLS)
def test_a_window_over_one_dimension_may_be_a_tuple(name: str) -> None:
    """As ``nn.AvgPool1d`` keeps it."""
    options = {"in_channels": 4} if name == "lip" else {}
    pool = create_pool(name, (2,), (2,), dims=1, **options).eval()
    pool.load_state_dict((number := create_pool(name, 2, 2, dims=1, **options).eval()).state_dict())
    x = torch.rand(2, 4, 6)
    assert torch.equal(pool(x), number(x))


@pytest.mark.parametrize("name", ["max", "avg", "soft", "power", "stochastic", "lip"])
def test_windows_are_those_of_max_pooling(name: str) -> None:
    x = torch.rand(1, 3, 11, 12)
    options: dict[str, Any] = {"logits": nn.Identity()} if name == "lip" else {}
    for window in ((3, 2, 1), ((3, 2), (2, 3), (1, 0))):
        for ceil_mode in (False, True):
            pool = create_pool(name, *window, ceil_mode=ceil_mode, **options)
            assert pool(x).shape == nn.MaxPool2d(*window, ceil_mode=ceil_mode)(x).shape


def test_padding_takes_no_part_in_an_average() -> None:
    x = torch.ones(1, 1, 4, 4)
    assert torch.equal(create_pool("avg", 3, 2, 1)(x), torch.ones(1, 1, 2, 2))
    assert create_pool("avg", 3, 2, 1, count_include_pad=True)(x)[0, 0, 0, 0] < 1


def test_options_go_to_the_class_and_unknown_ones_are_refused() -> None:
    assert create_pool("power", 2, norm_type=3.0).norm_type == 3
    assert create_pool("lp", 2, norm_type=3).norm_type == 3
    assert create_pool("soft", 2, gradient="paper").gradient == "paper"
    assert isinstance(create_pool("lip", 2, logits="bottleneck", in_channels=8).logits, downmix.BottleneckLogit)
    assert isinstance(create_pool("lip", 2, logits=nn.Identity()).logits, nn.Identity)
    for name in POOLS:
        with pytest.raises(TypeError, match="treshold"):
            create_pool(name, 2, treshold=1, **({"in_channels": 4} if name == "lip" else {}))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("hard", 2), {}, "pool must be one of 'max', 'avg', 'lp', 'soft', 'power', .*, got 'hard'"),
        (("max", 2), {"dims": 4}, "dims must be 1, 2 or 3"),
        (("avg", 2), {"dilation": (1, 2)}, r"torch's avg pool has no dilation, got \(1, 2\); use 1 or another pool"),
        (("lp", 3), {"padding": 1}, "torch's lp pool has no padding, got 1; use 0 or another pool"),
        (("lip", 2), {}, "lip with logits='simplified' has weights for each channel: pass in_channels"),
        (("lip", 2), {"logits": "deep"}, "logits must be one of 'simplified', 'bottleneck', got 'deep'"),
        (("lip", 2), {"logits": nn.Identity(), "in_channels": 8}, "leave it out where logits is a module"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_pool(*arguments, **options)
