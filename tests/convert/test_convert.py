import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import downmix
from downmix import PiX, SoftPool2d, convert, convert_like
from downmix.convert import Report
from downmix.cost import count_macs

X = torch.randn(2, 32, 8, 8)


class Net(nn.Module):
    """A squeeze whose parts are defined in the wrong order, under names that say nothing, inside other layers."""

    def __init__(self, **options: Any):
        super().__init__()
        self.d = nn.Conv2d(8, 32, 3, padding=1)
        self.c = nn.ReLU()
        self.b = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(32, 8, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x))))


class Calls(nn.Module):
    """A network whose forward is ``calls(layers, x)``, so that a test can say what runs in what order."""

    def __init__(self, calls: Callable[[Any, Tensor], Any], **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.calls = calls

    def forward(self, x: Tensor) -> Any:
        return self.calls(self, x)


def squeeze(channels: int = 8) -> nn.Conv2d:
    return nn.Conv2d(32, channels, 1, bias=False)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(8)


def end() -> nn.Conv2d:
    return nn.Conv2d(8, 4, 3)


def reasons(report: Report) -> dict[str, str]:
    return {left.name: left.reason for left in report.left}


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


class OwnConv(nn.Conv2d):
    pass


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
    "has no norm or activation around it": lambda: Calls(
        lambda m, x: m.end(m.norm(m.conv(x), x[:, :8])), conv=squeeze(), norm=ConditionalNorm(8), end=end()
    ),
    "such as weight_norm": lambda: Calls(
        lambda m, x: m.end(m.conv(x).relu()), conv=weight_computed_by_a_hook(), end=end()
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


def test_pools_named_in_full_are_replaced_too() -> None:
    x = torch.randn(2, 3, 19, 18)
    network, report = convert(pools(), squeeze=None, pool="soft", example_input=x, where=["3", "5"])
    assert [r.name for r in report.replaced] == ["3", "5"]
    assert isinstance(network[3], downmix.AdaptiveSoftPool2d)
    assert isinstance(network[5], SoftPool2d)


@pytest.mark.parametrize("size", [(12, 12), (13, 15)])
def test_windows_of_2_by_2_keep_the_size(size: tuple[int, int]) -> None:
    model = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(3, stride=1))
    x = torch.randn(1, 3, *size)
    network, report = convert(model, squeeze=None, pool="soft_2x2", example_input=x)
    assert (network[0].kernel_size, network[0].stride) == (2, 2)
    assert network(x).shape == model(x).shape
    assert reasons(report) == {"1": "its stride is not 2, so windows of 2 side by side can't take its place"}


def test_pools_that_cannot_be_replaced_are_named() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y, where = m.pool(x)
        return F.avg_pool2d(m.scaled(m.unpool(y, where)), 3, padding=1)

    scaled = nn.AvgPool2d(2, divisor_override=3)
    model = Calls(run, pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2), scaled=scaled)
    report = convert(model, squeeze=None, pool="soft", example_input=X)[1]
    assert reasons(report) == {
        "pool": "returns indices",
        "scaled": "has a divisor of its own, so it is no average",
        "avg_pool2d in the network": "is called as a function, which no module can replace",
    }


def twins() -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(squeeze(), norm(), nn.ReLU(), nn.Conv2d(8, 32, 3, padding=1)) for _ in "abc"])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, ["0.0", "1.0", "2.0"]),
        ("1.*", ["1.0"]),
        (["0.*", "2.0"], ["0.0", "2.0"]),
        (lambda name, module: name != "1.0" and isinstance(module, nn.Conv2d), ["0.0", "2.0"]),
    ],
)
def test_where(where: Any, expected: list[str]) -> None:
    report = convert(twins(), where=where, example_input=X)[1]
    assert [r.name for r in report.replaced] == expected
    assert set(reasons(report).values()) <= {"is not selected by where"}


def test_a_name_in_full_beats_the_default() -> None:
    model = Calls(lambda m, x: m.end(m.conv(x) + x[:, :8]), conv=squeeze(), end=end())
    assert len(convert(model, where="con*", example_input=X)[1].replaced) == 0
    network, report = convert(model, where="conv", example_input=X)
    assert [r.name for r in report.replaced] == ["conv"]
    assert isinstance(network.conv, PiX)


def test_frozen_norms_and_buffers_count() -> None:
    model = nn.Sequential(squeeze(), FrozenBatchNorm2d(8), nn.ReLU(), end())
    network, report = convert(model, example_input=X)
    assert isinstance(network[1], nn.Identity)
    assert report.notes == []
    assert report.before.activation_bytes is not None


def test_a_copy_by_default_and_the_model_is_left_alone() -> None:
    model = twins()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    network, _ = convert(model, example_input=X)
    assert network is not model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*model.modules(), *network.modules()])
    assert network[0][0].training
    assert not network[1][0].training
    assert not network[1][1].training


def test_in_place_keeps_the_parameters_themselves() -> None:
    model = twins()
    weight = model[0][0].weight.requires_grad_(False)
    network, _ = convert(model, inplace=True, example_input=X)
    assert network is model
    assert isinstance(model[0][0], PiX)
    assert model[0][0].weight is weight
    assert not weight.requires_grad


def test_hooks_move_along_and_their_handles_still_work() -> None:
    model, calls = Net(), []
    handles = [
        getattr(model, name).register_forward_hook(lambda module, args, output: calls.append(type(module)))
        for name in ("a", "b")
    ]
    network, _ = convert(model, inplace=True, example_input=X)
    calls.clear()
    network(X)
    assert calls == [PiX, nn.Identity]
    for handle in handles:
        handle.remove()
    network(X)
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_stays(dtype: torch.dtype) -> None:
    model = Net(bias=True).to(dtype)
    network, _ = convert(model, example_input=X.to(dtype))
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert network(X.to(dtype)).dtype == dtype


def test_the_config_rebuilds_the_network() -> None:
    model = nn.Sequential(twins(), nn.MaxPool2d(2))
    network, report = convert(model, pool="soft", where=["0.1.*", "1"], example_input=X)
    config = json.loads(json.dumps(report.config))
    torch.manual_seed(1)
    twin = convert_like(nn.Sequential(twins(), nn.MaxPool2d(2)), config)
    assert str(twin) == str(network)
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin.eval()(X), network.eval()(X), rtol=0, atol=0)


def weighted(conv: nn.Conv2d) -> nn.Module:
    return PiX(conv.in_channels, conv.in_channels // conv.out_channels, fusion="weighted", norm=True)


def not_the_second(conv: nn.Conv2d) -> nn.Module:
    raise ValueError("does not suit me")


def test_a_function_of_one_s_own() -> None:
    model = twins().double()
    network, report = convert(model, squeeze=weighted, example_input=X.double())
    assert network[0][0].fusion == "weighted"
    assert torch.equal(network[0][0].weight, model[0][0].weight)
    assert network[0][0].norm.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="0.0 was replaced by a function of your own; pass it as squeeze="):
        convert_like(twins(), report.config)
    assert str(convert_like(twins(), report.config, squeeze=weighted)) == str(network)


def test_a_function_may_refuse_a_layer() -> None:
    network, report = convert(twins(), squeeze=not_the_second, example_input=X)
    assert reasons(report) == dict.fromkeys(("0.0", "1.0", "2.0"), "does not suit me")
    assert report.config["layers"] == {}
    assert isinstance(network[0][1], nn.BatchNorm2d)


def test_a_config_that_does_not_fit_is_refused() -> None:
    network, report = convert(twins(), example_input=X)
    with pytest.raises(ValueError, match="0.0 is a PiX, neither convolution nor pool: was it replaced before?"):
        convert_like(network, report.config)
    with pytest.raises(ValueError, match="the configuration does not fit Net: .*0"):
        convert_like(Net(), report.config)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"squeeze": "picks"}, ValueError, "squeeze must be one of 'pix', .*got 'picks'"),
        ({"pool": "max"}, ValueError, "pool must be one of 'soft', 'soft_2x2', .*got 'max'"),
        ({"squeeze": None}, ValueError, "nothing to do: give squeeze, pool or both"),
        ({"min_reduction": 0}, ValueError, "min_reduction must be a positive integer, got 0"),
        ({"where": ["a", "e.*"]}, ValueError, "where='e.\\*' matches no module of Net"),
        ({"example_input": None}, ValueError, r"Net can't run on an example input of \[1, 3, 224, 224\]: pass another"),
        ({"model": "resnet50"}, TypeError, "model must be an nn.Module, got str"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        convert(**{"model": Net(), "example_input": X, **options})


def test_a_forward_that_needs_a_replaced_layer_is_an_error() -> None:
    model = Calls(lambda m, x: m.end(m.norm(m.conv(x)) * m.norm.num_features), conv=squeeze(), norm=norm(), end=end())
    with pytest.raises(ValueError, match="its forward needs a layer that was replaced; leave .*'num_features'"):
        convert(model, example_input=X)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(TypeError, match="convert it first, compile it afterwards"):
        convert(torch.compile(Net()), example_input=X)


def test_several_inputs_and_no_image() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, images: list[Tensor], scale: float) -> Tensor:
            return self.net(torch.stack(images)) * scale

    report = convert(Two(), example_input=([X[0], X[1]], 2.0))[1]
    assert [r.name for r in report.replaced] == ["net.a"]
    assert report.after.macs is None
    assert "MACs could not be counted: the example input is no batch of images" in str(report)


def test_the_report_prints_with_and_without_rich() -> None:
    report = convert(nn.Sequential(twins(), nn.MaxPool2d(2), squeeze(4)), pool="soft", example_input=X)[1]
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report)
    for text in (str(report), capture.get()):
        for word in ("4 of 5 layers replaced", "Conv2d 32→8 + BatchNorm2d + ReLU", "PiX 32→8", "SoftPool2d", "a head"):
            assert word in text
        (row,) = (line for line in text.splitlines() if "GMACs" in line)
        assert "1.000" not in row
    plain = str(convert(nn.Sequential(nn.Linear(8, 8)), example_input=X)[1])
    assert plain.startswith("Sequential: nothing to convert; it has no layer of the kinds asked for")


@pytest.mark.parametrize("export", [True, False], ids=["export", "compile"])
def test_a_converted_network_compiles_and_exports(export: bool) -> None:
    network, _ = convert(nn.Sequential(Net(), nn.MaxPool2d(2)).eval(), pool="soft", example_input=X)
    compiled = (
        torch.export.export(network, (X,)).module()
        if export
        else torch.compile(network, fullgraph=True, backend="aot_eager")
    )
    torch.testing.assert_close(compiled(X), network(X))
