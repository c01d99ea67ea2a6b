"""Regrouped networks compute what the original does, in every family, and are regrouped wherever that is possible."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn

import downmix
from downmix.export import regroup, write
from downmix.export._chunked import ChunkedPiX
from downmix.layers import (
    AdaptiveSoftPool2d,
    MixedPool2d,
    PiX,
    PowerAvgPool2d,
    S3Pool2d,
    SoftPool2d,
    StochasticPool2d,
)
from tests.models.test_models import narrow

pytestmark = pytest.mark.usefixtures("without_kernels")


def unsettle(network: nn.Module) -> nn.Module:
    """Gives every channel of every layer its own values, so that a wrong order shows; float64 leaves rounding out."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 1:
            nn.init.uniform_(tensor.data, 0.5, 1.5)
    return network.double().eval()


def check_same(network: nn.Module, x: Tensor) -> list[str]:
    """Regroups, compares outputs, and returns why layers stayed."""
    unsettle(network)
    regrouped, report = regroup(network, x)
    before, after = network(x), regrouped(x)
    assert before.abs().max() > 0
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * before.abs().max().item())
    kinds = {name: type(module) for name, module in regrouped.named_modules()}
    assert all(kinds[r.name] is (PiX if r.why_not else ChunkedPiX) for r in report)
    assert all(type(network.get_submodule(r.name)) is PiX for r in report)
    return [r.why_not for r in report]


FAMILIES = {
    "pix_resnet50": {"layers": (2, 2, 1, 2), "channels": (8, 16, 32, 64)},
    "pix_resnet50_r8": {"layers": (2, 2, 1, 1)},
    "pix_seresnet50": {"layers": (2, 2, 1, 1)},
    "pix_resnet50_down4": {},
    "pix_resnet18_prune1": {},
    "pix_resnet18_prune4": {"layers": (2, 2, 1, 1)},
    "pix_vgg16_1x1_r4": {},
    "pix_vgg16_down2": {},
    "pix_vgg16_prune4": {},
    "pix_mobilenetv2_100": {},
    "pix_mobilenetv2_100_full_bnpost": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_regrouped_whole_and_computes_the_same(name: str) -> None:
    network = narrow(name, num_classes=5, **FAMILIES[name])
    reasons = check_same(network, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert reasons
    assert not any(reasons)


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "weighted"},
        {"operator": "max"},
        {"operator": "min", "gate": "tanh"},
        {"operator": "avg", "fusion": "weighted"},
        {"norm": True, "bias": True, "threshold": 0.8},
        {"norm": True},
    ],
)
def test_every_option_of_pix(options: dict[str, Any]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 24, 3), PiX(24, 4, **options), nn.Conv2d(6, 5, 1))
    assert check_same(network, torch.randn(2, 3, 9, 7, dtype=torch.float64)) == [""]


def test_the_maximum_alone_is_bit_exact() -> None:
    pix = PiX(8, 4, operator="max", bias=True)
    nn.init.zeros_(pix.weight)  # a mean over channels in another order rounds otherwise
    network = nn.Sequential(nn.Conv2d(3, 8, 1), pix).eval()
    x = torch.randn(2, 3, 6, 6)
    regrouped, report = regroup(network, x)
    assert report[0].why_not == ""
    assert torch.equal(regrouped(x), network(x))


class Shared(nn.Module):
    """Several squeezes of one map, whose outputs meet."""

    def __init__(self, *reductions: int, mixed: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 1)
        self.squeezes = nn.ModuleList(PiX(24, r) for r in reductions)
        self.heads = nn.ModuleList(nn.Conv2d(24 // r, 5, 1, bias=False) for r in reductions)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return sum((head(pix(x)) for pix, head in zip(self.squeezes, self.heads, strict=True)), torch.zeros(()))


def test_reductions_that_divide_share_a_permutation_and_others_stay_plain() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert check_same(Shared(2, 12, 4), x) == ["", "", ""]
    assert all("don't divide" in reason for reason in check_same(Shared(2, 3), x))


class Odd(nn.Module):
    """A grouped convolution behind PiX, PiX behind a concatenation, one with a short group, and one that reads PiX."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.first, self.second = PiX(16, 4), PiX(16, 2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.joined, self.short, self.chain = PiX(12, 3), PiX(4, 3), PiX(8, 2)
        self.embed = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.first(x), self.second(x)
        joined = self.joined(torch.cat([a, self.grouped(b)], 1))
        tail = self.chain(b).mean((2, 3)) + self.embed(self.short(joined).flatten(1)[:, :4]).sum(1, keepdim=True)
        return torch.cat([tail, joined.flatten(1)], 1)


def test_what_the_network_depends_on_keeps_its_order() -> None:
    reasons = check_same(Odd(), torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert [bool(reason) for reason in reasons] == [False, False, True, True, True]
    assert "order" in reasons[2]
    assert "shorter" in reasons[3]


def test_a_layer_with_a_hook_stays_and_others_go() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), PiX(16, 2), nn.Conv2d(8, 8, 1))
    network.extend([PiX(8, 4), nn.Conv2d(2, 8, 1), PiX(8, 4)])
    network[1].register_forward_hook(lambda module, args, output: output.roll(1, 1))
    network[5].register_forward_pre_hook(lambda module, args: (args[0].flip(1),))
    reasons = check_same(network, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert reasons == ["carries a forward hook", "", "carries a forward hook"]


class Contrary(PiX):
    def probabilities(self, x: Tensor) -> Tensor:
        return 1 - super().probabilities(x)


def test_what_computes_its_own_probabilities_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), Contrary(16, 2), nn.Conv2d(8, 8, 1), PiX(8, 4), nn.Conv2d(2, 8, 1))
    network.extend([nn.utils.parametrizations.weight_norm(PiX(8, 4)), nn.Conv2d(2, 8, 1)])
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    regrouped, report = regroup(unsettle(network), x)
    torch.testing.assert_close(regrouped(x), network(x))
    assert type(regrouped[1]) is Contrary
    assert report[0].why_not.startswith("computes something of its own")
    assert [layer.why_not for layer in report[1:]] == ["", ""]


def test_pools_leave_the_order_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 1))
    pools = SoftPool2d(3, 2, 1), PowerAvgPool2d(2), MixedPool2d(2, ceil_mode=True), S3Pool2d(2), StochasticPool2d(2)
    for pool in pools:
        network.extend([pool, PiX(32, 4), nn.Conv2d(8, 32, 1)])
    network.extend([nn.ReLU(), AdaptiveSoftPool2d((2, None)), PiX(32, 2)])
    assert check_same(network, torch.rand(2, 3, 48, 48, dtype=torch.float64)) == [""] * 6
    network[1].register_forward_hook(lambda module, args, output: output.roll(1, 1))
    hooked, *others = check_same(network, torch.rand(2, 3, 48, 48, dtype=torch.float64))
    assert "order" in hooked
    assert not any(others)


def test_a_pool_whose_forward_was_put_in_its_place_is_no_pool() -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 1), SoftPool2d(2), PiX(32, 4), nn.Conv2d(8, 4, 1))
    network[1].forward = lambda x: x.roll(1, 1)
    (reason,) = check_same(network, torch.rand(2, 3, 8, 8, dtype=torch.float64))
    assert "order" in reason


class Named(nn.Module):
    """A PiX layer and a convolution under two names each, and a block that holds both under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pix, self.last = nn.Conv2d(3, 8, 1), PiX(8, 4), nn.Conv2d(2, 5, 1)
        self.body = self.again = nn.Sequential(self.stem, nn.ReLU(), self.pix, self.last)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(x)


def test_a_layer_with_several_names_is_regrouped_under_all() -> None:
    assert check_same(Named(), torch.randn(2, 3, 6, 6, dtype=torch.float64)) == [""]


class Twice(nn.Module):
    """A PiX layer that reads two maps, of which one or none must keep its order."""

    def __init__(self, fixed: str, reduction: int = 4):
        super().__init__()
        self.fixed = fixed
        self.a, self.b, self.pix = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), PiX(8, reduction)
        self.last_a, self.last_b = nn.Conv2d(8 // reduction, 5, 1), nn.Conv2d(8 // reduction, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        a, b = (torch.cat([y[:, :4], y[:, 4:]], 1) if name == self.fixed else y for name, y in (("a", a), ("b", b)))
        return self.last_a(self.pix(a)) + self.last_b(self.pix(b))


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("fixed", ["a", "b", "none"])
def test_a_layer_that_runs_twice_reads_both_maps_in_one_order(fixed: str, reduction: int) -> None:
    reasons = check_same(Twice(fixed, reduction), torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert bool(reasons[0]) == (fixed != "none" and reduction > 1)


def test_converted_network_with_grouped_convolutions() -> None:
    network = timm.create_model("resnext26ts", num_classes=5)
    network, _ = downmix.convert(network, example_input=torch.zeros(1, 3, 64, 64))
    reasons = check_same(network, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert reasons
    assert not any(reasons)


class Padded(nn.Sequential):
    def __init__(self, pad: tuple[int, ...]):
        super().__init__(nn.Conv2d(3, 8, 1), PiX(8, 4), nn.Conv2d(2, 5, 1))
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[1](nn.functional.pad(self[0](x), self.pad)))


@pytest.mark.parametrize(("pad", "stays"), [((1, 0, 1, 0), False), ((0, 0, 0, 0, 1, -1), True)])
def test_padding_of_height_and_width_keeps_the_order(pad: tuple[int, ...], stays: bool) -> None:
    (reason,) = check_same(Padded(pad), torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert bool(reason) == stays


def test_a_scale_of_each_channel_keeps_the_order() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), LayerScale2d(8), PiX(8, 4), nn.Conv2d(2, 5, 1))
    (reason,) = check_same(network, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert "order" in reason


class Listed(nn.Sequential):
    """Asks its layers for what it wrote on them, as YOLO does, and a squeeze for its window."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            assert layer.stride is not None
            x = layer(x) * layer.gain
        return x


def test_a_forward_that_asks_its_layers_runs_on() -> None:
    network = Listed(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3))
    for gain, layer in enumerate(network, start=1):
        layer.gain = gain
    x = torch.randn(2, 3, 12, 12)
    network, _ = downmix.convert(network, pool="soft", example_input=x, where=["1", "2"])
    assert check_same(network, x.double()) == [""]


def test_training_mode_is_refused_and_a_network_without_pix_comes_back() -> None:
    with pytest.raises(TypeError, match="regroup takes one batch of images, a tensor, got list"):
        regroup(nn.Conv2d(3, 4, 1).eval(), [torch.zeros(3, 4, 4)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eval"):
        regroup(nn.Conv2d(3, 4, 1).train(), torch.zeros(1, 3, 4, 4))
    assert regroup(nn.Conv2d(3, 4, 1).eval(), torch.zeros(1, 3, 4, 4))[1] == []


def test_what_fuse_has_had_add_up_sums_stays() -> None:
    network = unsettle(narrow("test_pix_resnet", num_classes=5))
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    fused, report = downmix.fuse(network, example_input=x)
    joined = [step.name for step in report.means if not step.why_not]
    regrouped, stays = regroup(fused, x)
    assert [layer.name for layer in stays if "since fuse; regroup the network before that" in layer.why_not] == joined
    torch.testing.assert_close(regrouped(x), network(x).detach())


class ByValue(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_what_can_not_be_traced_gets_a_sentence(tmp_path: Path) -> None:
    network, images = ByValue(nn.Conv2d(3, 8, 1), PiX(8, 4)).eval(), torch.rand(2, 3, 4, 4)
    sentence = (
        r"torch.export can't trace ByValue on images of \[2, 3, 4, 4\]: Could not guard on data-dep.*; pass other"
    )
    with pytest.raises(ValueError, match=sentence):
        regroup(network, images)
    with pytest.raises(ValueError, match=sentence):
        write(network, images, tmp_path / "a.pt2", "torch-export")
    with pytest.raises(ValueError, match=r"on images of \[2, 4, 4, 4\]: .*to have 3 channels, but got 4"):
        regroup(nn.Sequential(*network).eval(), torch.rand(2, 4, 4, 4))
