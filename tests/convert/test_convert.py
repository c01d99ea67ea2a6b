import copy
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

from downmix import PiX, convert, convert_like

from .nets import Calls, Net, X, end, norm, reasons, squeeze, twins


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_network(mode: Callable[[], Any]) -> None:
    expected = convert(twins(), example_input=X)[1]
    with mode():
        network, report = convert(twins(), example_input=X.clone())
    assert report == expected
    network(X).sum().backward()
    assert network[0][0].weight.grad is not None


class Merging(nn.Conv2d):
    """Adds a second weight to the first for as long as it is evaluated, as LoRA's layers do."""

    merged = False

    def train(self, mode: bool = True) -> "Merging":
        if self.merged == mode:
            self.merged = not mode
            self.weight.data += -1 if mode else 1
        return super().train(mode)


@pytest.mark.parametrize("inplace", [True, False])
def test_modes_are_set_by_the_modules_themselves(inplace: bool) -> None:
    model = nn.Sequential(twins(), Merging(32, 32, 1))
    model[1].weight.data.zero_()
    network, _ = convert(model, inplace=inplace, example_input=X)
    assert not network[1].merged
    assert not network[1].weight.any()

    model = Calls(lambda m, x: nn.functional.dropout(m.net(x), training=m.training), net=twins())
    model = create_feature_extractor(model, ["dropout"])
    network, _ = convert(model, inplace=inplace, example_input=X)
    assert "training = True" in network.code
    assert all(module.training for module in network.modules())
    network, _ = convert(network.eval(), squeeze=None, pool="soft", inplace=inplace, example_input=X)
    assert "training = False" in network.code
    assert not network.training


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


def test_what_a_network_noted_on_a_layer_moves_along_and_what_torch_did_does_not() -> None:
    """As detectors do that are built from a list of layers, and ask each which of the others it reads."""
    model = nn.Sequential(squeeze(), norm(), nn.ReLU(), nn.MaxPool2d(2), end())
    for place, layer in enumerate(model):
        layer.place, layer.reads = place, -1
    network, _ = convert(model, pool="soft", example_input=X)
    assert [(layer.place, layer.reads) for layer in network] == [(place, -1) for place in range(5)]
    window = {"kernel_size", "stride", "padding", "dilation"}
    assert vars(network[0]).keys() - vars(PiX(32, 4)).keys() == {"place", "reads", *window}
    assert vars(network[1]).keys() - vars(nn.Identity()).keys() == {"place", "reads"}


def test_a_note_takes_no_new_layer_s_own_attribute() -> None:
    model = nn.Sequential(squeeze(), norm(), nn.ReLU(), end())
    model[0].threshold = "for another tool"
    network, _ = convert(model, example_input=X)
    assert network[0].threshold == 0.5


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
    with pytest.raises(TypeError, match="config must be the config of a report of convert, .* got Report"):
        convert_like(twins(), report)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="such as report.config, but pool, layers is missing"):
        convert_like(twins(), {"squeeze": "pix"})
    with pytest.raises(TypeError, match="model must be an nn.Module, got int"):
        convert_like(3, report.config)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="model is scripted or compiled already; convert it first"):
        convert_like(torch.compile(twins()), report.config)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"squeeze": "picks"}, ValueError, "squeeze must be one of 'pix', .*got 'picks'"),
        ({"pool": "hard"}, ValueError, "pool must be one of 'max', .*'soft_2x2', a function .*got 'hard'"),
        ({"squeeze": None}, ValueError, "nothing to do: give squeeze, pool or both"),
        ({"min_reduction": 0}, ValueError, "min_reduction must be a positive integer, got 0"),
        ({"where": ["a", "e.*"]}, ValueError, "where='e.\\*' matches no module of Net"),
        (
            {"example_input": None},
            ValueError,
            r"Net can't run on an example input of \[1, 3, 224, 224\]: give another one",
        ),
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


@pytest.mark.parametrize("pool", ["soft", "lip"])  # without and with a layer inside
def test_a_forward_that_keeps_the_old_layers_is_an_error(pool: str) -> None:
    layers = [nn.MaxPool2d(2), squeeze(), norm(), nn.ReLU(), end()]
    model = Calls(lambda m, x: functools.reduce(lambda y, layer: layer(y), m.order, x), body=nn.Sequential(*layers))
    model.order = layers  # type: ignore[assignment]
    for what in ({"pool": pool, "squeeze": None}, {"squeeze": "pix"}):
        with pytest.raises(ValueError, match=r"of Calls goes on with what body\.[01] was before, .* use nn.ModuleList"):
            convert(model, example_input=X, **what)


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


def test_a_network_that_can_t_be_copied_says_how() -> None:
    model = nn.Sequential(prune.l1_unstructured(nn.Conv2d(32, 32, 3), "weight", 0.5), *twins())
    with pytest.raises(
        ValueError, match=r"Sequential can't be copied, .* run it once under torch.no_grad\(\), or pass"
    ):
        convert(model, example_input=X)
    with pytest.raises(ValueError, match="can't be copied"):
        convert_like(model, {"squeeze": "pix", "pool": None, "layers": {}})
    locked: Any = twins()
    locked.lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"cannot pickle '_thread.lock' object\); take that out of it, or pass inplace"
    ):
        convert(locked, example_input=X)
    with torch.no_grad():
        model(X)
    assert len(convert(model, example_input=X)[1].replaced) == 3
    spare = prune.l1_unstructured(nn.Conv2d(32, 32, 3), "weight", 0.5)  # which does not run
    _, report = convert(Calls(lambda m, x: m.net(x), net=twins(), spare=spare), inplace=True, example_input=X)
    assert len(report.replaced) == 3
    assert report.after.macs is None


def test_what_is_wrapped_for_several_processes_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(twins())
        with pytest.raises(TypeError, match="in DistributedDataParallel already; convert it first, wrap it afterwards"):
            convert(model, pool="lip", example_input=X)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # that it is deprecated
def test_a_scripted_layer_is_named() -> None:
    model = nn.Sequential(twins(), nn.Sequential(torch.jit.script(nn.ReLU())))
    with pytest.raises(TypeError, match=r"layer '1\.0' of model is scripted or traced already; convert it first"):
        convert(model, example_input=X)
