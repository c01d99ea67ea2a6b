from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import downmix
from downmix import SoftPool2d, convert

from .nets import Calls, X, reasons

pytestmark = pytest.mark.usefixtures("without_kernels")


def pools() -> nn.Sequential:
    return nn.Sequential(
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool2d((2, 1)),
        nn.MaxPool2d(2, stride=1, dilation=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(3, 4, 1),
        nn.AvgPool2d(2),
    )


def test_pools_keep_their_windows() -> None:
    x = torch.randn(2, 3, 19, 18)
    model = pools()
    network, report = convert(model, squeeze=None, pool="soft", example_input=x)
    assert isinstance(network, nn.Sequential)
    for old, new in zip(model[:3], network[:3], strict=True):
        assert isinstance(new, SoftPool2d)
        for fact in ("kernel_size", "stride", "padding", "ceil_mode"):
            assert getattr(new, fact) == getattr(old, fact)
    assert network[2].dilation == 2
    assert reasons(report) == {"3": "is an adaptive pool", "5": "is a global pool"}
    assert network(x).shape == model(x).shape
    assert report.before.params == report.after.params == 16


def test_a_map_without_a_batch() -> None:
    network = convert(
        nn.Sequential(nn.MaxPool2d((2, 3))), squeeze=None, pool="soft", example_input=torch.ones(4, 32, 3)
    )[0]
    assert isinstance(network[0], SoftPool2d)
    report = convert(nn.Sequential(nn.MaxPool2d(3)), squeeze=None, pool="soft", example_input=torch.ones(4, 3, 3))[1]
    assert reasons(report) == {"0": "is a global pool"}


def test_pools_named_in_full_are_replaced_too() -> None:
    x = torch.randn(2, 3, 19, 18)
    network, report = convert(pools(), squeeze=None, pool="soft", example_input=x, where=["3", "5"])
    assert [r.name for r in report.replaced] == ["3", "5"]
    assert isinstance(network[3], downmix.AdaptiveSoftPool2d)
    assert isinstance(network[5], SoftPool2d)


WINDOWS = [
    {"kernel_size": kernel, "stride": 2, "padding": padding, "ceil_mode": ceil_mode}
    for kernel, padding in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 1), (5, 2), ((3, 2), (1, 0)), ((2, 3), 0)]
    for ceil_mode in (False, True)
]


@pytest.mark.parametrize("window", [*WINDOWS, {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2}], ids=str)
def test_windows_of_2_by_2_keep_the_size(window: dict[str, Any]) -> None:
    """Or the layer stays, where they don't at every size."""
    model, rounded = nn.Sequential(nn.MaxPool2d(**window)), [SoftPool2d(2), SoftPool2d(2, ceil_mode=True)]
    maps = [torch.randn(1, 3, *size) for size in ((12, 12), (13, 12), (12, 13), (13, 15))]
    keeps = any(all(pool(x).shape == model(x).shape for x in maps) for pool in rounded)
    network, report = convert(model, squeeze=None, pool="soft_2x2", example_input=maps[0])
    if keeps:
        assert (network[0].kernel_size, network[0].stride) == (2, 2)
    else:
        reason = "gives maps of other sizes than windows of 2 side by side do, rounded down or up"
        assert reasons(report) == {"0": reason}
    assert all(network(x).shape == model(x).shape for x in maps)


def test_windows_of_2_by_2_in_other_dimensions_and_averages() -> None:
    model = nn.Sequential(nn.AvgPool1d(2, ceil_mode=True))
    network = convert(model, squeeze=None, pool="soft_2x2", example_input=torch.randn(1, 3, 7))[0]
    assert network(torch.randn(1, 3, 7)).shape == (1, 3, 4)
    report = convert(nn.Sequential(nn.MaxPool2d(3, 1)), squeeze=None, pool="soft_2x2", example_input=X)[1]
    assert reasons(report) == {"0": "its stride is not 2, so windows of 2 side by side can't take its place"}


def test_pools_that_cannot_be_replaced_are_named() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y, where = m.pool(x)
        return F.avg_pool2d(m.scaled(m.unpool(y, where)), 3, padding=1)

    scaled = nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.AvgPool2d(1))
    model = Calls(run, pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2), scaled=scaled)
    report = convert(model, squeeze=None, pool="soft", example_input=X)[1]
    assert reasons(report) == {
        "pool": "returns indices",
        "scaled.0": "has a divisor of its own, so it is no average",
        "scaled.1": "has windows of one value and stride 1, so it pools nothing",
        "avg_pool2d in the network": "is called as a function, which no module can replace",
    }


class Halving(nn.MaxPool2d):
    """Built in its own way, run in torch's."""

    def __init__(self) -> None:
        super().__init__(3, 2, 1)


def test_a_subclass_that_runs_as_torch_s_pool_is_replaced() -> None:
    for word, kind in (("soft", SoftPool2d), ("soft_2x2", SoftPool2d), ("lip", downmix.LIPPool2d)):
        network, report = convert(nn.Sequential(Halving()), squeeze=None, pool=word, example_input=X)
        assert report.left == []
        assert isinstance(network[0], kind)
        assert network(X).shape == Halving()(X).shape


class Halved(nn.Module):
    """A layer without children that calls a pool as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)


def test_functions_in_modules_without_children_are_named() -> None:
    model = nn.Sequential(Halved(), nn.LPPool2d(2, 2), downmix.MixedPool2d(2))
    report = convert(model, squeeze=None, pool="soft", example_input=torch.rand(1, 3, 16, 16))[1]
    reason = "is called as a function, which no module can replace"
    assert reasons(report) == {"max_pool2d_with_indices in 0": reason}
    report = convert(Halved(), squeeze=None, pool="soft", example_input=X)[1]
    assert reasons(report) == {"max_pool2d_with_indices in the network": reason}
