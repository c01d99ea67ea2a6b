"""PiX layers and residual sums that share passes have the gradients they have one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import downmix
from downmix import PiX
from downmix.layers import _shared_passes
from downmix.layers._shared_passes import add_and_rectify, squeeze
from downmix.ops.pix import _pick_or_mix

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
VARIANTS: tuple[dict[str, Any], ...] = ({}, {"gate": "tanh", "bias": True}, {"fusion": "weighted"}, {"operator": "avg"})


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 3, 4), (3, 10, 2, 2)])
@pytest.mark.parametrize("with_sum", [False, True])
def test_derivatives_of_all_kinds(variant: dict[str, Any], shape: tuple[int, ...], with_sum: bool) -> None:
    layer = PiX(shape[1], 4, **variant).double()

    def inputs(*shape: int) -> tuple[Tensor, ...]:
        return *torch.randn(2, *shape).double().requires_grad_(), *layer.parameters()

    def run(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> Any:
        return squeeze(layer, x * 1, shortcut) if with_sum else squeeze(layer, x * shortcut)

    given = inputs(*shape)
    assert isinstance(layer(given[0]).grad_fn, _shared_passes._PiX._backward_cls)
    assert gradcheck(run, given, check_batched_grad=True)
    # Of the definition, whatever ran; two pixels show them, and many take long.
    assert gradgradcheck(run, inputs(2, shape[1], 1, 2), check_batched_grad=True)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("frozen", ["", "x", "shortcut", "maps", "parameters"])
def test_whatever_is_frozen_or_unused(variant: dict[str, Any], frozen: str, apart: Callable[[], None]) -> None:
    layer, x, shortcut = PiX(8, 4, **variant), *torch.randn(2, 2, 8, 5, 5)
    layer.requires_grad_(frozen != "parameters")
    x.requires_grad_(frozen not in ("x", "maps"))
    shortcut.requires_grad_(frozen not in ("shortcut", "maps"))
    inputs = [tensor for tensor in (x, shortcut, *layer.parameters()) if tensor.requires_grad]

    def gradients(use: Callable[[Tensor, Tensor], Tensor], *maps: Tensor) -> list[Tensor | None]:
        first, *rest = maps
        if sharing:
            y, kept = squeeze(layer, first * 1, *rest)
        else:
            kept = sum(rest, first).relu() if rest else first
            y = layer(kept)
        return list(torch.autograd.grad(use(y, kept), inputs, allow_unused=True, materialize_grads=True))

    uses = [lambda y, kept: y.square().sum() + kept.square().sum(), lambda y, kept: y.square().sum()]
    if frozen != "maps":
        uses.append(lambda y, kept: kept.square().sum())
    cases = [(use, x, shortcut) for use in uses]
    cases += [(use, x) for use in uses[: 2 if frozen == "x" else 3]]
    sharing = True
    ours = [gradients(*case) for case in cases]
    apart()
    sharing = False
    for got, expected in zip(ours, [gradients(*case) for case in cases], strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("with_sum", [False, True])
def test_a_map_that_needs_no_gradient_goes_on_without(with_sum: bool) -> None:
    layer, x, shortcut = PiX(8, 4), *torch.randn(2, 2, 8, 5, 5)
    y, kept = squeeze(layer, x, shortcut if with_sum else None)
    assert y.requires_grad
    assert not kept.requires_grad


def test_a_bias_learns_alone(apart: Callable[[], None]) -> None:
    layer, x = PiX(8, 4, bias=True), torch.randn(2, 8, 5, 5)
    layer.weight.requires_grad_(False)
    (got,) = torch.autograd.grad(layer(x).sum(), [layer.bias])
    apart()
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).sum(), [layer.bias])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("variant", [{}, {"fusion": "weighted", "operator": "max"}], ids=str)  # with a kernel, without
def test_under_autocast(
    variant: dict[str, Any], create_graph: bool, dtype: torch.dtype, apart: Callable[[], None]
) -> None:
    layer, x = PiX(16, 4, **variant), torch.randn(2, 16, 5, 5, dtype=dtype, requires_grad=True)

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        loss = y.float().square().sum()
        return [y, *torch.autograd.grad(loss, [x, layer.weight], create_graph=create_graph)]

    ours = gradients()
    apart()
    for got, expected in zip(ours, gradients(), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("grad", [False, True])
def test_a_sum_is_written_over_its_first_summand(grad: bool) -> None:
    x, shortcut = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5, requires_grad=grad)
    summand = x * 1
    y = add_and_rectify(summand, shortcut)
    torch.testing.assert_close(y, (x + shortcut).relu())
    assert y is summand
    assert y.requires_grad is grad


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 5, 5), (8, 5, 5)])
def test_a_layer_takes_the_sum_in(shape: tuple[int, ...], norm: bool) -> None:
    layer, x, shortcut = PiX(8, 4, norm=norm).eval(), *torch.randn(2, *shape)
    expected = (x + shortcut).relu()

    def run(layer: Callable[..., Tensor] = layer) -> tuple[Tensor, Tensor]:
        summand = x * 1
        return layer(summand, shortcut), summand

    for grad in (False, True):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False):  # which hears of each step
            torch.testing.assert_close(run(), (layer(expected), expected))
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(run(), (layer(expected), expected))
            torch.testing.assert_close(run(torch.compile(layer, backend="eager", fullgraph=True)), run())


def test_a_rule_changed_after_the_forward_pass_changes_nothing() -> None:
    layer, x = PiX(8, 4), torch.randn(2, 8, 3, 3, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    loss = layer(x).square().sum()
    layer.threshold, layer.gate, layer.operator = 1.0, "tanh", "avg"
    torch.testing.assert_close(torch.autograd.grad(loss, [x, layer.weight]), expected)


def test_gradients_that_memory_does_not_hold(apart: Callable[[], None]) -> None:
    """With signs turned in a view, as those of complex numbers are, and zeros left out."""
    layer, x = PiX(8, 4), torch.randn(2, 8, 3, 3, requires_grad=True)
    grad = torch.randn(2, 2, 3, 3)
    for given in (torch._neg_view(grad), torch._efficientzerotensor(grad.shape)):
        expected = torch.autograd.grad(layer(x), [x, layer.weight], given.clone().resolve_neg() * 1)
        torch.testing.assert_close(torch.autograd.grad(layer(x), [x, layer.weight], given), expected)


def test_unbatched_maps_fire_hooks_once() -> None:
    layer, calls = PiX(8, 4), []
    layer.register_forward_hook(lambda module, args, output: calls.append(args[0].dim()))
    layer(torch.randn(8, 3, 3))
    assert calls == [3]


def test_the_reference_stays_in_force() -> None:
    layer, x = PiX(8, 4).double(), torch.randn(2, 8, 3, 3).double().requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    with downmix.use_backend("reference"):
        assert "reference" in downmix.explain_backend(layer, x)
        assert isinstance(_pick_or_mix.kernel(x, x[:, :2, 0, 0], *layer.rule, stem="pix_layer"), str)
        torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), [x, layer.weight]), expected)
