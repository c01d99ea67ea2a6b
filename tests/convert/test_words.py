"""Every word of create_pool and create_squeeze, in a network."""

import json
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import downmix
from downmix import convert, convert_like
from downmix.convert.replace import POOLS, SQUEEZES
from downmix.layers.pools import POOLS as POOL_CLASSES

from .nets import Calls, Net, X, reasons

pytestmark = pytest.mark.usefixtures("without_kernels")


def small() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)),
        nn.Conv2d(16, 4, 3),
    )


def rebuilt(fresh: nn.Module, network: nn.Module, report: Any) -> None:
    """The configuration, through JSON, gives the same network."""
    twin = convert_like(fresh, json.loads(json.dumps(report.config)))
    twin.load_state_dict(network.state_dict())
    assert str(twin) == str(network)


@pytest.mark.parametrize("word", [word for word in POOL_CLASSES if word != "max"])
def test_pools_take_the_place_of_max_pools(word: str) -> None:
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    network, report = convert(small().double(), squeeze=None, pool=word, example_input=x)
    refused = {"lp": "torch's lp pool has no padding, got 1", "s3": "stride"}.get(word, "")
    assert isinstance(network[2], POOL_CLASSES[word][1])
    assert isinstance(network[5], nn.MaxPool2d if refused else POOL_CLASSES[word][1])
    assert list(reasons(report)) == ["5"] * bool(refused)
    assert refused in reasons(report).get("5", "")
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    y = network.train()(x)
    assert y.shape == small().double()(x).shape
    y.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    rebuilt(small().double(), network, report)


def test_a_pool_that_is_what_the_word_stands_for_stays() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(3, padding=1, stride=1))
    x = torch.randn(1, 3, 9, 9)
    network, report = convert(model, squeeze=None, pool="avg", example_input=x)
    assert reasons(report) == {"1": "is already AvgPool2d, which pool='avg' stands for"}
    assert not network[0].count_include_pad
    network, report = convert(model, squeeze=None, pool="max", example_input=x)
    assert reasons(report) == {"0": "is already MaxPool2d, which pool='max' stands for"}
    assert str(network[1]) == str(nn.MaxPool2d(3, stride=1, padding=1))


def test_one_lip_takes_maps_of_one_number_of_channels() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.pool(m.b(m.pool(m.a(x))))

    model = Calls(run, a=nn.Conv2d(32, 8, 1), b=nn.Conv2d(8, 12, 3, padding=1), pool=nn.MaxPool2d(2, stride=1))
    report = convert(model, squeeze=None, pool="lip", example_input=X)[1]
    assert "runs on maps of different numbers of channels" in reasons(report)["pool"]
    model.b = nn.Conv2d(8, 8, 3, padding=1)
    network, report = convert(model, squeeze=None, pool="lip", example_input=X)
    assert report.config["channels"] == {"pool": 8}
    assert network.pool.logits[0].in_channels == 8


def test_adaptive_pools_named_in_full_take_no_other_word() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 3, 1))
    report = convert(model, squeeze=None, pool="power", where="0", example_input=torch.randn(1, 3, 9, 9))[1]
    assert reasons(report) == {"0": "is adaptive, which pool='power' can't be"}


@pytest.mark.parametrize("word", [word for word in SQUEEZES if word != "conv"])
def test_squeezes_take_the_place_of_convolutions(word: str) -> None:
    model = Net(bias=False).double()
    x = X.double()
    network, report = convert(model, squeeze=word, example_input=x)
    expected = type(downmix.create_squeeze(word, 32, 4))
    assert isinstance(network.a, expected)
    assert isinstance(network.b, nn.Identity)
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert torch.equal(getattr(network.a, "weight", model.a.weight), model.a.weight)  # PiX's, which has one
    network.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    rebuilt(Net(bias=False).double(), network, report)


def test_a_plain_squeeze_stays_where_the_plain_one_is_asked_for() -> None:
    report = convert(Net(), squeeze="conv", example_input=X)[1]
    assert reasons(report) == {"a": "is a convolution already, which squeeze='conv' stands for"}


@pytest.mark.parametrize("word", ["pix", "fbs", "group"])
def test_a_squeeze_keeps_the_channels_of_the_convolution_for_who_asks(word: str) -> None:
    network, report = convert(Net(), squeeze=word, example_input=X)
    assert (network.a.in_channels, network.a.out_channels) == (Net().a.in_channels, Net().a.out_channels)
    assert report.replaced[0].now.endswith(f" {Net().a.in_channels}→{Net().a.out_channels}")


def test_numbers_that_a_word_refuses_leave_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(30, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    report = convert(model, squeeze="group", example_input=torch.randn(1, 30, 8, 8))[1]
    assert "a squeeze of 30 channels by 5 in 4 groups does not come out even" in reasons(report)["0"]


def test_real_networks() -> None:
    x = torch.zeros(1, 3, 64, 64)
    report = convert(torchvision.models.squeezenet1_1(), squeeze="dwp", pool="lip", example_input=x)[1]
    assert len(report.replaced) == 7 + 3
    assert report.after.macs
    report = convert(timm.create_model("vgg_small"), squeeze=None, pool="stochastic", example_input=x)[1]
    assert [r.now for r in report.replaced] == ["StochasticPool2d 2 stride 2"] * 3
    with torch.device("meta"):
        model = timm.create_model("resnet26")
    network, report = convert(model, squeeze="fbs", pool="lip", example_input=x.to("meta"))
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert report.after.activation_bytes


def test_all_words_are_the_same_as_those_of_the_layers() -> None:
    assert list(POOLS) == [*POOL_CLASSES, "soft_2x2"]
