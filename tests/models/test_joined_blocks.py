"""Blocks of PiX ResNets that share passes give what they give layer by layer, and only where nobody watches."""

import copy
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.autograd import gradcheck

import downmix
from downmix import PiX
from downmix.models import join_stages
from downmix.models.pix_resnet import SqueezeBottleneck
from downmix.tools._bench_networks import settle_batch_norms

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def network(name: str = "test_pix_resnet", **options: Any) -> Any:
    """One whose branches all count: scales of 0 in front of the sums would hide them."""
    torch.manual_seed(0)
    net = timm.create_model(name, **options).double()
    settle_batch_norms(net, torch.randn(4, 3, 64, 64).double())
    return net


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs in training and inference, and all gradients."""
    x = x.detach().requires_grad_()
    y = net.train()(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    with torch.no_grad():
        inference = net.eval()(x)
    with torch.inference_mode():
        assert torch.equal(net(x), inference)
    return [y, inference, *grads]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"layers": (2, 2, 1, 1)}, {"drop_path_rate": 0.3}, {"block_args": {"squeeze": "pix", "attn_layer": "se"}}],
    ids=str,
)
def test_networks_learn_what_they_learn_layer_by_layer(
    layout: str, options: dict[str, Any], apart: Callable[[], None]
) -> None:
    net = network(**options).to(memory_format=LAYOUTS[layout])
    other, x = copy.deepcopy(net), torch.randn(2, 3, 64, 64).double().contiguous(memory_format=LAYOUTS[layout])
    torch.manual_seed(1)
    ours = results(net, x)
    apart()
    torch.manual_seed(1)
    for got, expected in zip(ours, results(other, x), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("by_operators")
@pytest.mark.parametrize("training", [False, True])
def test_means_are_taken_anew_at_the_start_of_each_stage_only(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, taken, mean = network(layers=(2, 3, 1, 1)), [], Tensor.mean
    monkeypatch.setattr(Tensor, "mean", lambda x, *args, **kwargs: taken.append(x.shape[1]) or mean(x, *args, **kwargs))
    with torch.set_grad_enabled(training):
        net.train(training)(torch.randn(2, 3, 64, 64).double())
    assert taken[:4] == [64, 32, 64, 128]


def test_gradients_of_maps_between_blocks_are_whole(apart: Callable[[], None]) -> None:
    """What grad-cam and hooks on features see."""
    net, x = network(layers=(2, 1, 1, 1)).train(), torch.randn(2, 3, 64, 64).double()

    def seen() -> list[Tensor]:
        maps: list[Tensor] = []
        handle = net.layer1[0].register_forward_hook(lambda module, args, output: maps.append(output))
        loss = net(x).square().sum()
        handle.remove()
        return list(torch.autograd.grad(loss, maps))

    ours = seen()
    apart()
    torch.testing.assert_close(ours, seen())


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Conv2d])
def test_gradients_of_maps_within_blocks_are_whole(kind: type[nn.Module], apart: Callable[[], None]) -> None:
    """A map that is written over later has the gradient of what was written, in torch."""
    net, x = network(layers=(2, 1, 1, 1)).train(), torch.randn(2, 3, 64, 64).double()

    def seen() -> list[Tensor]:
        maps: list[Tensor] = []
        layers = [layer for layer in net.layer1.modules() if isinstance(layer, kind)]
        handles = [
            layer.register_forward_hook(lambda _, args, output: maps.extend((*args, output))) for layer in layers
        ]
        loss = net(x).square().sum()
        for handle in handles:
            handle.remove()
        return list(torch.autograd.grad(loss, maps))

    ours = seen()
    apart()
    torch.testing.assert_close(ours, seen())


@pytest.mark.parametrize("how", ["class", "forward"])
def test_gradients_of_maps_that_somebody_s_own_layers_keep_are_whole(how: str, apart: Callable[[], None]) -> None:
    class Keeps(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            maps.append(nn.BatchNorm2d.forward(self, input))
            return maps[-1]

    net, maps, x = network(layers=(2, 1, 1, 1)).train(), [], torch.randn(2, 3, 64, 64).double()
    for block in net.layer1:
        if how == "class":
            block.bn3.__class__ = Keeps
        else:
            block.bn3.forward = Keeps.forward.__get__(block.bn3)

    def seen() -> list[Tensor]:
        maps.clear()
        return list(torch.autograd.grad(net(x).square().sum(), maps))

    ours = seen()
    apart()
    torch.testing.assert_close(ours, seen())


def test_sums_stay_for_who_keeps_them_where_the_relu_has_memory_of_its_own(apart: Callable[[], None]) -> None:
    net, x = network(layers=(2, 1, 1, 1)).eval(), torch.randn(2, 3, 64, 64).double()
    maps: list[Tensor] = []
    for block in net.layer1:
        block.act3.inplace = False
        block.bn3.register_forward_hook(lambda _, args, output: maps.append(output))
    with torch.no_grad():
        net(x)
        apart()
        net(x)
    assert all(kept.min() < 0 for kept in maps)
    torch.testing.assert_close(maps[:2], maps[2:])


def test_a_map_that_retains_its_gradient(apart: Callable[[], None]) -> None:
    class Retains(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            self.output = super().forward(input)
            self.output.retain_grad()
            return self.output

    net, x = network(layers=(2, 1, 1, 1)).train(), torch.randn(2, 3, 64, 64).double()
    norms = [block.bn3 for block in net.layer1]

    def retained() -> list[Tensor | None]:
        net(x).square().sum().backward()
        return [norm.output.grad for norm in norms]

    for norm in norms:
        norm.__class__ = Retains
    ours = retained()
    apart()
    torch.testing.assert_close(ours, retained())


@pytest.mark.parametrize("layer", ["conv1", "bn1", "act1", "act3", ""])
def test_hooks_still_fire_and_may_write(layer: str, apart: Callable[[], None]) -> None:
    net, calls, x = network(layers=(3, 1, 2, 1)).eval(), [], torch.randn(2, 3, 64, 64).double()
    for inner in (net.layer1[1], net.layer3[0]):
        hooked = inner.get_submodule(layer)
        hooked.register_forward_hook(lambda module, args, output: calls.append(output.mul_(2).shape))
    with torch.inference_mode():
        ours = net(x)
        assert len(calls) == 2
        apart()
        torch.testing.assert_close(ours, net(x))


def test_what_somebody_wrote_over_runs_as_they_wrote_it() -> None:
    class Half(PiX):
        def probabilities(self, x: Tensor) -> Tensor:
            return super().probabilities(x) / 2

    for layer in (Half(8, 4).double(), PiX(8, 4).double()):
        if type(layer) is PiX:
            layer.gated = lambda logits: logits.sigmoid() / 2
        x = torch.randn(2, 8, 3, 3).double().requires_grad_()
        assert gradcheck(lambda x, weight, layer=layer: layer(x), (x, layer.weight))
    stage, x = network(layers=(2, 1, 1, 1)).layer1, torch.randn(2, 64, 8, 8).double()
    expected = stage[0](x)
    stage[1].forward = lambda x: x * 1
    torch.testing.assert_close(stage(x), expected)


def test_blocks_compiled_one_by_one_run_compiled() -> None:
    stage, x, compiled = network(layers=(2, 1, 1, 1)).layer1, torch.randn(2, 64, 8, 8).double(), []
    for block in stage:
        block.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    with torch.no_grad():
        stage(x)
    assert len(compiled) == len(stage)


def test_a_norm_that_gives_a_view(apart: Callable[[], None]) -> None:
    net, x = network(norm_layer=LayerNorm2d), torch.randn(2, 3, 64, 64).double()
    ours = results(net, x)
    apart()
    torch.testing.assert_close(results(net, x), ours)


def test_who_saved_a_map_hears_that_it_was_written_over() -> None:
    net, saved, scale = network().eval().requires_grad_(False), [], torch.ones(1, requires_grad=True)
    net.layer1[0].bn3.register_forward_hook(lambda module, args, output: saved.append(scale * output))
    net(torch.randn(2, 3, 64, 64).double())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved[0].sum().backward()


@pytest.mark.parametrize("joined", [False, True])
def test_a_shortcut_that_has_been_added_is_let_go(joined: bool) -> None:
    stage, shortcuts, alive = network(layers=(2, 1, 1, 1)).layer1, [], []
    stage[0].downsample.register_forward_hook(lambda module, args, output: shortcuts.append(weakref.ref(output)))
    stage[1].conv2.register_forward_hook(lambda module, args, output: alive.append(shortcuts[0]() is not None))
    if not joined:
        stage[1].register_forward_hook(lambda module, args, output: None)
    with torch.no_grad():
        stage(torch.randn(2, 64, 8, 8).double())
    assert alive == [False]


def test_other_activations_and_squeezes_run_as_they_did() -> None:
    for options in ({"act_layer": nn.SiLU}, {"block_args": {"squeeze": "dwp"}}):
        net = network(**options)
        assert len(net.layer1[0].forward_unfinished([torch.randn(2, 64, 8, 8).double()])) == 1


@pytest.mark.parametrize("name", ["resnet26d", "resnext50_32x4d", "seresnet50"])
def test_converted_blocks_join_too(name: str, apart: Callable[[], None]) -> None:
    net = network(name, layers=(3, 2, 1, 1))
    net, _ = downmix.convert(net, example_input=torch.zeros(1, 3, 64, 64).double())
    other, x = copy.deepcopy(net), torch.randn(2, 3, 64, 64).double()
    join_stages(net)
    assert any(type(block) is SqueezeBottleneck for block in net.layer2)
    assert [name for name, _ in net.named_modules()] == [name for name, _ in other.named_modules()]
    assert _sums_left(net, x) > _sums_left(other, x) == 0
    ours = results(net, x)
    apart()
    for got, expected in zip(ours, results(other, x), strict=True):
        torch.testing.assert_close(got, expected)


def _sums_left(net: nn.Module, x: Tensor) -> int:
    """How many PiX layers a sum was left to."""
    nodes, seen = [net.train()(x).grad_fn], set()
    while nodes:
        node: Any = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return sum(getattr(node, "rectified", False) for node in seen)


@pytest.mark.parametrize("shape", [(2, 60, 8, 8), (64, 8, 8), (2, 64, 8, 8, 8), (64,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
def test_maps_that_do_not_fit_are_refused_as_layer_by_layer(
    shape: tuple[int, ...], dtype: torch.dtype, apart: Callable[[], None]
) -> None:
    block, x = network().layer1[0], torch.ones(shape, dtype=dtype)
    with pytest.raises((TypeError, ValueError)) as ours:
        block(x)
    apart()
    with pytest.raises(type(ours.value), match=re.escape(str(ours.value))):
        block(x)


def test_a_function_may_stand_in_for_a_layer() -> None:
    net, x = network().eval(), torch.randn(2, 3, 64, 64).double()
    expected = net(x)
    for name, function in (("act2", torch.relu), ("act3", torch.relu)):
        delattr(net.layer1[0], name)
        setattr(net.layer1[0], name, function)
        torch.testing.assert_close(net(x), expected)
