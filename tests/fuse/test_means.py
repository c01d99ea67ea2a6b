"""Which residual sums PiX layers add up themselves, which stay and why, and what is written over."""

from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import downmix
from downmix import PiX
from downmix.fuse import Step

from .helpers import IMAGES, NO_SUM, check, settled


class Sums(nn.Module):
    """Residual sums that may be written over, and others that may not."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.same, self.pix = nn.Identity(), PiX(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        if self.kind == "shortcut first":
            return self.pix(torch.relu(x + y)) + x.mean()
        if self.kind == "through identity":
            return self.pix((self.same(y).add(x)).relu()) + x.mean()
        if self.kind == "read again":
            return self.pix(torch.relu(y + x)) + y.mean() + x.mean()
        if self.kind == "sum read again":
            y += x
            return self.pix(torch.relu(y)) + y.mean()
        if self.kind == "alias read again":
            return self.pix(torch.relu(self.same(y) + x)) + x.mean() + y.mean()
        if self.kind == "scaled":
            return self.pix(torch.relu(torch.add(y, x, alpha=2)))
        if self.kind == "broadcast":
            return self.pix(torch.relu(y + x.mean((2, 3), keepdim=True)))
        return self.pix(torch.relu(y + y))


@pytest.mark.parametrize("kind", ["shortcut first", "through identity"])
def test_the_summand_that_nobody_else_reads_is_written_over(kind: str) -> None:
    assert check(Sums(kind).eval())[1].means == [Step("pix")]


@pytest.mark.parametrize("kind", ["read again", "sum read again", "alias read again", "scaled", "broadcast", "doubled"])
def test_sums_that_stay(kind: str) -> None:
    assert check(Sums(kind).eval())[1].means[0].why_not


class Prepared(nn.Module):
    """A residual sum right behind what makes the caller's images fit."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]):
        super().__init__()
        self.prepare, self.conv, self.pix = prepare, nn.Conv2d(8, 8, 1), PiX(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return self.pix(torch.relu(x + self.conv(x)))


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 1)) if x.shape[-1] % 2 else x


@pytest.mark.parametrize(
    ("prepare", "example"),
    [
        (lambda x: x.float(), torch.randn(1, 8, 6, 6).bfloat16()),
        (lambda x: x.contiguous(), torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last)),
        (Padded(), torch.randn(1, 8, 6, 5)),
    ],
)
def test_images_that_need_no_copy_are_not_written_over(prepare: Callable[[Tensor], Tensor], example: Tensor) -> None:
    network = Prepared(prepare).eval()
    fused, report = downmix.fuse(network, example_input=example)
    images = torch.randn(1, 8, 6, 6)
    kept = images.clone()
    torch.testing.assert_close(fused(images), network(images).detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(images, kept)
    assert report.means == [Step("pix")]  # into the other summand


class Layers(nn.Module):
    """A residual sum out of layers that are called as torch's methods are."""

    def __init__(self, add: nn.Module, relu: nn.Module):
        super().__init__()
        self.first, self.add, self.relu, self.pix = nn.Conv2d(3, 8, 1), add, relu, PiX(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.pix(self.relu(self.add(x, x.flip(1)) if isinstance(self.add, Larger) else x + x.flip(1)))


class Larger(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.maximum(x, y)


def test_layers_may_be_called_what_torch_s_methods_are() -> None:
    assert check(Layers(nn.Identity(), nn.ReLU()).eval())[1].means == [Step("pix")]
    for layers in ((nn.Identity(), nn.SiLU()), (Larger(), nn.ReLU())):
        assert check(Layers(*layers).eval())[1].means == [Step("pix", NO_SUM)]


class Trebled(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


def test_what_is_no_plain_relu_stays() -> None:
    replaced = nn.ReLU()
    replaced.forward = torch.tanh
    for relu in (Trebled(), replaced):
        assert check(Layers(nn.Identity(), relu).eval())[1].means == [Step("pix", NO_SUM)]
    built_otherwise = type("Own", (nn.ReLU,), {})()
    assert check(Layers(nn.Identity(), built_otherwise).eval())[1].means == [Step("pix")]


class Readers(nn.Module):
    """Of one sum: a layer with a norm, one of a class of its own, and two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.own = nn.Conv2d(3, 8, 1), PiX(8, 4, norm=True), type("Own", (PiX,), {})(8, 4)
        self.pix, self.again = PiX(8, 4), PiX(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = torch.relu(x + x.flip(1))
        return torch.cat([self.norm(y), self.own(y), self.pix(y), y, self.again(y)], 1)


def test_the_first_plain_reader_adds_for_all() -> None:
    _, report = check(Readers().eval())
    own = "has a norm, or is of a class of its own"
    assert report.means == [
        Step("norm", own),
        Step("own", own),
        Step("pix"),
        Step("again", "reads a sum that pix adds up"),
    ]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pix, self.last, self.relu = PiX(8, 4), nn.Conv2d(2, 8, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.last(self.pix(x)) + x)


@pytest.mark.parametrize(
    ("hooked", "left"),
    [
        ("", ["stands in a network, which carries a forward hook"] * 3),
        ("2", [NO_SUM, "stands in 2, which carries a forward hook", NO_SUM]),
        ("1.relu", [NO_SUM, NO_SUM, ""]),
        ("3.pix", [NO_SUM, "", "carries a forward hook"]),
    ],
)
def test_hooks_still_run(hooked: str, left: list[str]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block(), Block()).eval()
    called = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        called.append(module)
        return output * 2

    network.get_submodule(hooked).register_forward_hook(double)
    fused, report = check(network)
    called.clear()
    fused(torch.randn(IMAGES))
    assert len(called) == 1
    assert [step.why_not for step in report.means] == left


def test_a_graph_is_the_same_out_of_a_file() -> None:
    fused, _ = check(Sums("shortcut first").eval())
    file = BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    images = torch.randn(IMAGES)
    assert torch.equal(loaded(images), fused(images))
    assert loaded.state_dict().keys() == fused.state_dict().keys()
    assert not any(module.training for module in loaded.modules())


class Features(nn.Module):
    """Two maps, in a list or in an object."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        return SimpleNamespace(a=a, b=b) if self.kind == "object" else [a, b]


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.randn(1, 8, *IMAGES[2:]))

    def forward(self, x: Tensor) -> Tensor:
        return self.map


class SumsOfFeatures(nn.Module):
    """Sums of maps that lie in a container, belong to a layer, or lie over each other."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.features, self.learned, self.pix = Features(kind), Learned(), PiX(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if self.kind == "object":
            return self.pix(torch.relu(features.a + features.b)) + features.a.mean()
        y = features[0]
        if self.kind == "parameter":
            return self.pix(torch.relu(self.learned(x) + y)) + y.mean()
        if self.kind == "expanded":
            return self.pix(torch.relu(y.mean((2, 3), keepdim=True).expand(y.shape) + y)) + y.mean()
        if self.kind == "overlapping":
            y = torch.cat([y, features[1], -y])
            return self.pix(torch.relu(y[:-1] + y[1:]))
        if self.kind == "second read again":
            z = features[1]
            return self.pix(torch.relu(y + z)) + z.mean()
        return self.pix(torch.relu(y + features[1])) + features[0].mean() + features[1].mean()


def test_a_sum_of_maps_out_of_a_list_overwrites_the_one_that_is_not_read_again() -> None:
    assert check(SumsOfFeatures("second read again").eval())[1].means == [Step("pix")]


@pytest.mark.parametrize("kind", ["both read again", "object", "parameter", "expanded", "overlapping"])
def test_maps_that_something_else_can_reach_stay(kind: str) -> None:
    assert check(SumsOfFeatures(kind).eval(), 1)[1].means[0].why_not


class Rectified(nn.Module):
    """The second sum reads what the first wrote over a map, of which a view is still read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(2, 8, 1)
        self.pix, self.again = PiX(8, 4), PiX(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = torch.relu(self.second(x) + x)
        flat, z = y.flatten(2), self.third(self.pix(y))
        return self.again(torch.relu(y + z)) + flat.mean() + z.mean()


def test_a_view_of_a_map_that_lies_in_another_now_is_still_read() -> None:
    assert [bool(step.why_not) for step in check(Rectified().eval())[1].means] == [False, True]


class Twisted(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return -x if x.mean() > 100 else x


def test_what_torch_fx_cannot_trace_is_folded_and_says_so() -> None:
    network = settled(Twisted(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), PiX(8, 4)))
    fused, report = check(network)
    assert isinstance(fused, Twisted)
    assert report.norms == [Step("1")]
    assert report.means[0].why_not.startswith("stands in a network that torch.fx can't trace: ")


def test_a_forward_put_in_the_place_of_a_layer_s_still_runs() -> None:
    network = Sums("shortcut first").eval()
    forward = network.pix.forward
    network.pix.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]
    fused, report = downmix.fuse(network, example_input=torch.randn(IMAGES))
    images = torch.randn(IMAGES)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-4, atol=1e-4)
    assert report.means == [Step("pix", "has a forward put in its place, which takes no sum")]


class Doubled(Sums):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if isinstance(x, Tensor) else x)


def test_what_torch_fx_traces_wrongly_stays() -> None:
    fused, report = check(Doubled("shortcut first").eval())
    assert isinstance(fused, Doubled)
    assert "the trace changed an output" in report.means[0].why_not


class InAResult(Sums):
    Result = type("Result", (dict,), {})

    def forward(self, x: Tensor) -> Any:
        return self.Result(map=super().forward(x))


def test_what_nobody_can_compare_stays() -> None:
    fused, report = downmix.fuse(InAResult("shortcut first").eval(), example_input=torch.randn(IMAGES))
    assert report.means[0].why_not == "stands in a network that returns a Result, in which outputs can't be compared"
    assert type(fused(torch.randn(IMAGES))) is InAResult.Result
