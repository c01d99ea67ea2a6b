from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

from downmix import PiX, convert, convert_like
from downmix.cost import count_macs

from .nets import Calls, Net, X, end, norm, reasons, squeeze

pytestmark = pytest.mark.usefixtures("without_kernels")


def test_a_converted_resnet50_is_pix_resnet50() -> None:
    plain, pix = timm.create_model("resnet50"), timm.create_model("pix_resnet50").eval()
    x = torch.randn(2, 3, 64, 64)
    # The first squeeze keeps its 64 channels, and the source replaces it as well.
    network, report = convert(plain.eval(), min_reduction=1, example_input=x)
    assert {r.name for r in report.replaced} == {n for n, m in pix.named_modules() if isinstance(m, PiX)}
    assert report.after.params == sum(p.numel() for p in pix.parameters())
    assert report.after.macs == count_macs(pix, (3, 64, 64))
    pix.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(network(x), pix(x), rtol=0, atol=0)


def test_what_follows_is_found_by_running_the_network() -> None:
    model = Net(bias=True)
    network, report = convert(model, example_input=X)
    assert [(r.name, r.was) for r in report.replaced] == [("a", "Conv2d 32→8 + BatchNorm2d + ReLU")]
    assert isinstance(network.a, PiX)
    assert (network.a.in_channels, network.a.reduction) == (32, 4)
    assert isinstance(network.b, nn.Identity)
    assert isinstance(network.c, nn.Identity)
    assert torch.equal(network.a.weight, model.a.weight)
    assert torch.equal(network.a.bias, model.a.bias)
    expected = model.d(network.a(X))
    torch.testing.assert_close(network(X), expected)


def test_norm_and_activation_in_either_order_or_one_alone() -> None:
    for layers in ([norm(), nn.SiLU()], [nn.GELU(), norm()], [nn.ReLU()], [norm()], [nn.GroupNorm(2, 8), nn.PReLU()]):
        model = nn.Sequential(squeeze(), *layers, end())
        network, report = convert(model, example_input=X)
        assert len(report.replaced) == 1
        assert all(isinstance(layer, nn.Identity) for layer in network[1:-1])


def test_only_the_first_norm_and_activation_go() -> None:
    network, _ = convert(nn.Sequential(squeeze(), norm(), nn.ReLU(), norm(), nn.ReLU(), end()), example_input=X)
    assert [type(layer) for layer in network[1:5]] == [nn.Identity, nn.Identity, nn.BatchNorm2d, nn.ReLU]


def test_in_pre_activation_order_what_comes_before_stays() -> None:
    model = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), squeeze(), nn.AvgPool2d(2), end())
    network, report = convert(model, example_input=X)
    assert [r.was for r in report.replaced] == ["Conv2d 32→8"]
    assert [type(layer) for layer in network[:4]] == [nn.BatchNorm2d, nn.ReLU, PiX, nn.AvgPool2d]


def test_a_map_that_others_read_too_makes_a_projection() -> None:
    """As of a pyramid's, and of a DenseNet's transition whose map goes on to a decoder."""
    layers = {"norm": nn.BatchNorm2d(32), "conv": squeeze(), "end": end()}
    model = Calls(lambda m, x: (m.end(m.conv(y := m.norm(x).relu())), y), **layers)
    assert reasons(convert(model, example_input=X)[1]) == {"conv": "has no norm or activation to itself: a projection"}


def test_a_rectifier_that_cannot_go_stays_with_a_note() -> None:
    shared = Calls(
        lambda m, x: m.end(m.act(m.norm(m.conv(m.act(x))))), conv=squeeze(), norm=norm(), act=nn.ReLU(), end=end()
    )
    network, report = convert(shared, example_input=X)
    assert isinstance(network.act, nn.ReLU)
    assert report.replaced[0].note == "relu stays (also runs elsewhere)"
    function = Calls(
        lambda m, x: m.end(F.relu(m.norm(m.conv(x)), inplace=True)), conv=squeeze(), norm=norm(), end=end()
    )
    network, report = convert(function, example_input=X)
    assert isinstance(network.norm, nn.Identity)
    assert report.replaced[0].note == "relu stays (is called as a function)"


def unit(conv: nn.Module, channels: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), activation)


def test_an_activation_that_several_modules_share_goes_from_the_one_with_the_squeeze() -> None:
    silu = nn.SiLU()
    model = nn.Sequential(
        unit(squeeze(), 8, silu), unit(nn.Conv2d(8, 32, 3), 32, silu), unit(squeeze(), 8, silu), end()
    )
    network, report = convert(model, example_input=X)
    assert [r.was for r in report.replaced] == ["Conv2d 32→8 + BatchNorm2d + SiLU"] * 2
    assert [type(network[i][2]) for i in range(3)] == [nn.Identity, nn.SiLU, nn.Identity]
    assert str(convert_like(model, report.config)) == str(network)


def test_an_activation_that_its_module_holds_under_two_names_stays() -> None:
    silu = nn.SiLU()
    model = nn.Sequential(squeeze(), norm(), silu, nn.Conv2d(8, 8, 3), silu, end())
    report = convert(model, example_input=X)[1]
    assert reasons(report)["0"] == "is followed by 2, which also runs elsewhere"


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def overwritten() -> nn.Conv2d:
    conv = squeeze()
    conv.forward = lambda input: input[:, : conv.out_channels] + 1
    return conv


class Pointwise(nn.Conv2d):
    """Built in its own way, run in torch's, as Hugging Face's depthwise convolutions are."""

    def __init__(self, channels: int):
        super().__init__(channels, channels // 4, 1, bias=False)


class Padded(nn.Module):
    """Pads by hand as TensorFlow does, for which it asks the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.end = squeeze(), norm(), end()

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv, self.end):
            margin = [conv.dilation[0] * (conv.kernel_size[0] - 1) // conv.stride[0] - conv.padding[0]]
            x = conv(F.pad(x, 4 * margin))
            x = self.norm(x) if conv is self.conv else x
        return x


class ConditionalNorm(nn.BatchNorm2d):
    """Reads a second map, which Identity would not take."""

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        return super().forward(x) * gain


LEFT: dict[str, Callable[[], nn.Module]] = {
    "does not reduce the channels by 2 or more": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=squeeze(32), end=nn.Conv2d(32, 4, 3)
    ),
    "a ratio that is no integer": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=squeeze(12), end=nn.Conv2d(12, 4, 3)
    ),
    "has a stride, groups or padding": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=nn.Conv2d(32, 8, 1, stride=2), end=end()
    ),
    "is a OwnConv, whose forward may differ": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=OwnConv(32, 8, 1), end=end()
    ),
    "is a Conv2d, whose forward may differ": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=overwritten(), end=end()
    ),
    "did not run": lambda: Calls(lambda m, x: m.end(x), conv=squeeze(), end=nn.Conv2d(32, 4, 3)),
    "runs more than once": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu() + m.conv(x.flip(0)).relu()), conv=squeeze(), end=end()
    ),
    "gives its output to more than one layer": lambda: Calls(
        lambda m, x: m.end(m.norm(y := m.conv(x)) + y), conv=squeeze(), norm=norm(), end=end()
    ),
    "works on a 1×1 map": lambda: Calls(
        lambda m, x: m.end(m.conv(x.mean((2, 3), keepdim=True)).relu() + x[:, :8]), conv=squeeze(), end=end()
    ),
    "a head": lambda: Calls(lambda m, x: m.conv(x).relu().mean((2, 3)), conv=squeeze()),
    "a gate": lambda: Calls(
        lambda m, x: m.end(m.norm(m.conv(x)).sigmoid() * x[:, :8]), conv=squeeze(), norm=norm(), end=end()
    ),
    "gives a single channel": lambda: Calls(  # as BAM's attention, whose sigmoid comes after a sum
        lambda m, x: m.end(((m.conv(m.norm(x).relu()) + x.mean((2, 3), True)).sigmoid() * x)[:, :8]),
        norm=nn.BatchNorm2d(32), conv=squeeze(1), end=end(),
    ),
    "a projection": lambda: Calls(lambda m, x: m.end(m.conv(x) + x[:, :8]), conv=squeeze(), end=end()),
    "followed by silu in the network, which is called as a function": lambda: Calls(
        lambda m, x: m.end(F.silu(m.conv(x))), conv=squeeze(), end=end()
    ),
    "followed by norm, which also runs elsewhere": lambda: Calls(
        lambda m, x: m.end(m.norm(m.conv(x)) + m.norm(x[:, :8])), conv=squeeze(), norm=norm(), end=end()
    ),
    "followed by both, which also runs elsewhere": lambda: Calls(
        lambda m, x: m.end(m.both(m.conv(x)) + m.both(x[:, :8])), conv=squeeze(), both=BatchNormAct2d(8), end=end()
    ),
    "has no norm or activation to itself": lambda: Calls(
        lambda m, x: m.end(m.norm(m.conv(x), x[:, :8])), conv=squeeze(), norm=ConditionalNorm(8), end=end()
    ),
    "such as weight_norm": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=weight_computed_by_a_hook(), end=end()
    ),
    "has a weight or bias that something else computes": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=nn.utils.parametrizations.weight_norm(squeeze()), end=end()
    ),
    "such as weight_norm or prune": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=pruned_bias(), end=end()
    ),
}  # fmt: skip


def weight_computed_by_a_hook() -> nn.Module:
    conv = squeeze()
    weight = conv.weight
    del conv.weight
    conv.raw_weight = nn.Parameter(weight.detach())
    conv.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.raw_weight * 2))
    conv.weight = weight.detach()
    return conv


def pruned_bias() -> nn.Module:
    conv = prune.l1_unstructured(nn.Conv2d(32, 8, 1), "bias", 0.5)
    with torch.no_grad():
        conv(X)
    return conv


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_no_squeeze_stays_and_the_report_says_why(reason: str) -> None:
    model = LEFT[reason]()
    network, report = convert(model, example_input=X)
    assert report.replaced == []
    assert reason in reasons(report)["conv"]
    assert "nothing to convert" in str(report)
    torch.testing.assert_close(network.eval()(X), model.eval()(X))


def test_one_layer_under_two_names_stays() -> None:
    conv = squeeze()
    report = convert(Calls(lambda m, x: m.end(m.conv(x).relu()), conv=conv, twin=conv, end=end()), example_input=X)[1]
    assert reasons(report) == {"conv": "stands in the network under several names"}


def test_the_model_s_output_counts_as_a_reader() -> None:
    model = Calls(lambda m, x: (y := m.conv(x), m.end(m.norm(y))), conv=squeeze(), norm=norm(), end=end())
    assert reasons(convert(model, example_input=X)[1]) == {"conv": "gives its output to more than one layer"}


def test_frozen_norms_and_buffers_count() -> None:
    model = nn.Sequential(squeeze(), FrozenBatchNorm2d(8), nn.ReLU(), end())
    network, report = convert(model, example_input=X)
    assert isinstance(network[1], nn.Identity)
    assert report.notes == []
    assert report.before.activation_bytes is not None


def test_a_subclass_that_runs_as_torch_s_convolution_is_a_squeeze() -> None:
    network, report = convert(nn.Sequential(Pointwise(32), norm(), nn.ReLU(), end()), example_input=X)
    assert [r.was for r in report.replaced] == ["Pointwise 32→8 + BatchNorm2d + ReLU"]
    assert isinstance(network[0], PiX)


@pytest.mark.parametrize("word", ["pix", "fbs", "group"])
def test_a_forward_that_asks_a_squeeze_for_its_window_runs_on(word: str) -> None:
    network, report = convert(Padded(), squeeze=word, example_input=X)
    assert [r.name for r in report.replaced] == ["conv"]
    twin = convert_like(Padded(), report.config)
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin.eval()(X), network.eval()(X))


def observed(network: nn.Sequential, observer: Callable[[Tensor], object]) -> nn.Sequential:
    def look(module: nn.Module, args: tuple[Tensor], *output: Tensor) -> None:
        observer((output or args)[0])

    for module in network.modules():
        module.register_forward_hook(look)
        module.register_forward_pre_hook(look)
    return network


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(32, 32, 3), nn.Sequential(squeeze(), norm(), nn.SiLU()), end())


@pytest.mark.parametrize(
    "observer",
    [lambda o: o.mean(), lambda o: o.abs().mean(), lambda o: o.detach().cpu().clone(), lambda o: o.relu() @ o],
)
def test_hooks_that_only_look_on_change_nothing(observer: Callable[[Tensor], object]) -> None:
    _, expected = convert(plain(), example_input=X)
    _, report = convert(observed(plain(), observer), example_input=X)
    assert [(r.name, r.was) for r in expected.replaced] == [("1.0", "Conv2d 32→8 + BatchNorm2d + SiLU")]
    assert (report.replaced, report.left) == (expected.replaced, expected.left)


def test_what_a_hook_makes_of_an_output_comes_from_a_function() -> None:
    model = plain()
    model[1][0].register_forward_hook(lambda module, args, output: output * 2)
    report = convert(model, example_input=X)[1]
    assert reasons(report)["1.0"] == "has no norm or activation to itself: a projection"
    kept: list[Tensor] = []
    model = Calls(lambda m, x: (m.end(m.norm(m.conv(x))), kept[0] + 1), conv=squeeze(), norm=norm(), end=end())
    model.conv.register_forward_hook(lambda module, args, output: kept.append(output * 2))
    assert reasons(convert(model, example_input=X)[1]) == {"conv": "gives its output to more than one layer"}
