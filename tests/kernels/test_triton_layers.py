"""The Triton kernels of residual sums and whole PiX layers in Triton's interpreter, or on a GPU where there is one."""

import importlib
import math
from typing import Any

import pytest
import torch

import downmix
from downmix import PiX
from downmix.kernels import _linear as linear
from downmix.kernels._layouts import layout as layout_of
from downmix.layers._shared_passes import _SLOPES
from downmix.ops.add_relu_mean import add_relu_mean_, whole
from downmix.tools._bench_networks import settle_batch_norms

from ..ops.standard import LAYOUTS
from ..ops.test_add_relu_mean import check as check_add_relu_mean
from .random_cases import (
    DEVICE,
    check_pix_layer,
    check_whole_pix_layer,
)

pytestmark = pytest.mark.usefixtures("triton_for_all")


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(10))
def test_gradients_of_pix_layers_in_random_cases(seed: int) -> None:
    check_pix_layer(seed, cases=12, roundings=0)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(10))
def test_whole_pix_layers_in_random_cases(seed: int) -> None:
    check_whole_pix_layer(seed, cases=12)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("programs", [1, 4096])  # that leave means, or parts of sums
def test_add_relu_mean(programs: int, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = importlib.import_module("downmix.kernels.triton.add_relu_mean")
    monkeypatch.setattr("downmix.kernels.triton._common._SUMMING", programs)
    kernel.forward_launch.cache_clear()
    for shape in ((2, 21, 37, 31), (3, 64, 8, 8), (1, 5, 1, 3)):
        x, shortcut = (LAYOUTS[layout](torch.randn(shape, device=DEVICE).to(dtype)) for _ in range(2))
        x[0, 0, 0, 0], x[0, 1, 0, 1] = math.nan, math.inf
        assert "runs downmix.kernels.triton" in downmix.explain_backend(add_relu_mean_.run, x.clone(), shortcut)
        check_add_relu_mean(x, shortcut)
    kernel.forward_launch.cache_clear()


def test_which_sums_and_means_the_gpu_kernel_takes() -> None:
    x = torch.randn(2, 6, 4, 4, device=DEVICE)
    for other in (x.contiguous(memory_format=torch.channels_last), x[:, :, :1, :1], x.double()):
        assert "runs its reference: the GPU kernel takes two" in downmix.explain_backend(
            add_relu_mean_.run, x * 1, other
        )
    assert add_relu_mean_.run(x[:0], x[:0]).shape == (0, 6)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("programs", [1, 4096])
def test_means_alone(programs: int, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = importlib.import_module("downmix.kernels.triton.add_relu_mean")
    monkeypatch.setattr("downmix.kernels.triton._common._SUMMING", programs)
    kernel.forward_launch.cache_clear()
    for shape in ((2, 21, 37, 31), (3, 64, 8, 8), (1, 5, 1, 3)):
        x = LAYOUTS[layout](torch.randn(shape, device=DEVICE).to(dtype))
        before = x.clone()
        mean = whole(kernel.forward(x, None), dtype)
        assert torch.equal(x, before)
        assert mean.dtype == dtype
        exact, eps = x.double().mean((2, 3)), torch.finfo(dtype).eps
        assert (mean.double() - exact).abs().max() <= eps * (1 + exact.abs().max())
    kernel.forward_launch.cache_clear()


def test_which_means_the_gpu_kernel_takes() -> None:
    kernel = importlib.import_module("downmix.kernels.triton.add_relu_mean")
    x = torch.zeros(2, 6, 16, 16, device=DEVICE)
    assert kernel.why_not(x, None) is kernel.why_not(x[:0], None) is None
    assert kernel.forward(x[:0], None).shape == (0, 6)
    for other in (x.contiguous(memory_format=torch.channels_last), torch.zeros(2, 6, 16, 17, device=DEVICE)):
        assert kernel.why_not(other, None) == "torch's own mean is as fast"


def probabilities(layer: PiX, mean: torch.Tensor) -> torch.Tensor:
    """p of a layer by its kernel, from the mean of its input or parts of it."""
    kernel = importlib.import_module("downmix.kernels.triton._pix_linear")
    weight, slope = layer.weight.detach(), _SLOPES[layer.gate]
    p = torch.empty(mean.shape[0], weight.shape[0], dtype=weight.dtype, device=DEVICE)
    launch = kernel.forward_launch(layout_of(mean), layout_of(weight), layer.bias is not None, slope, p.dtype)
    launch(mean, weight, weight if layer.bias is None else layer.bias.detach(), p)
    return p


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("parts", [None, 1, 5, 64])
@pytest.mark.parametrize("options", [{}, {"gate": "tanh", "bias": True}], ids=str)
def test_probabilities_of_pix_layers(options: dict[str, Any], parts: int | None, dtype: torch.dtype) -> None:
    for batch, channels, reduction in ((1, 40, 4), (9, 25, 3), (3, 1100, 44), (4, 1, 1), (33, 96, 2)):
        layer = PiX(channels, reduction, **options).to(DEVICE, dtype)
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias)
        mean = torch.randn(batch, channels).to(dtype)
        if parts:  # which are float32, at least
            mean = torch.randn(batch, parts, channels).to(torch.promote_types(dtype, torch.float32)) / parts**0.5
        mean = mean.to(DEVICE)
        with torch.no_grad():
            got = probabilities(layer, mean)
            own = layer.gated(torch.nn.functional.linear(whole(mean, dtype), layer.weight.flatten(1), layer.bias))
            layer.double()
            mean = whole(mean.double(), torch.float64)
            logits = torch.nn.functional.linear(mean, layer.weight.flatten(1), layer.bias)
            exact = layer.gated(logits)
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        slack = torch.finfo(dtype).eps + 16 * eps * max(1, float(logits.abs().max()))
        allowed = 2 * (own.double() - exact).abs().max() + slack
        assert (got.double() - exact).abs().max() <= allowed


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("g_parts", "c_parts"), [(1, None), (5, 9), (70, 1)])
def test_gradients_of_the_linear_map(g_parts: int, c_parts: int | None, dtype: torch.dtype) -> None:
    kernel = importlib.import_module("downmix.kernels.triton._pix_linear")
    wide = torch.promote_types(dtype, torch.float32)
    for batch, channels, groups in ((1, 40, 10), (9, 25, 9), (3, 1100, 25), (4, 1, 1), (32, 96, 48), (2, 16, 600)):
        logits = torch.randn(batch, g_parts, groups, device=DEVICE, dtype=wide)
        mean = torch.randn(batch, *([c_parts] if c_parts else []), channels, device=DEVICE, dtype=wide)
        weight = torch.randn(groups, channels, 1, 1, device=DEVICE).to(dtype)
        got = (
            torch.empty(batch, channels, device=DEVICE, dtype=wide),
            torch.empty_like(weight),
            weight.new_empty(groups),
        )
        kernel.backward_launch(layout_of(logits), layout_of(mean), layout_of(weight), True)(logits, mean, weight, *got)
        exact = linear.gradients(logits.double().sum(1), mean.double(), weight.double(), has_bias=True)
        for ours, truth in zip(got, exact, strict=True):
            assert truth is not None
            eps, most = torch.finfo(wide).eps, max(1.0, float(truth.abs().max()))
            assert (ours.double() - truth).abs().max() <= (64 * eps + torch.finfo(ours.dtype).eps) * most
    assert "large batches" in kernel.backward_launch(((33, 1, 2), (2, 2, 1), wide), *[layout_of(mean)] * 2, False)


def test_logits_of_any_size_open_the_gate() -> None:
    layer, mean = PiX(2, 1).to(DEVICE), torch.tensor([[1e30, -1e30], [math.inf, 0], [math.nan, 1]], device=DEVICE)
    torch.nn.init.eye_(layer.weight.data.view(2, 2))
    expected = torch.sigmoid(torch.nn.functional.linear(mean, layer.weight.flatten(1)))
    torch.testing.assert_close(probabilities(layer, mean), expected, equal_nan=True)


def test_which_layers_are_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = importlib.import_module("downmix.kernels.triton.pix_sample")
    layer, x = PiX(8, 4).to(DEVICE), torch.randn(2, 8, 3, 3, device=DEVICE)

    def said(x: torch.Tensor = x, shortcut: torch.Tensor | None = None, weight: torch.Tensor = layer.weight) -> str:
        return kernel.why_not(x, shortcut, weight, None, 1.0, *layer.rule) or ""

    assert said() == said(shortcut=x * 1) == ""
    with torch.autocast(DEVICE, torch.bfloat16):
        assert said(x.bfloat16()) == ""
        for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
            _, _, p = kernel.forward(x.to(dtype), None, layer.weight.detach().to(dtype), None, 1.0, *layer.rule)
            assert p.dtype == expected
    assert "of one dtype" in said(x.double())
    assert "for 8 channels in groups of 4" in said(weight=layer.weight[:, :4])
    assert "all contiguous or all channels_last" in said(shortcut=x.contiguous(memory_format=torch.channels_last))
    assert "on one device" in said(weight=layer.weight.to("meta"))
    assert "large batches" in said(x[:0])
    monkeypatch.setattr(kernel, "_MOST_PRODUCTS", 31)
    kernel._plan.cache_clear()
    assert "large batches" in said()
    kernel._plan.cache_clear()


@pytest.mark.parametrize("most_read", [0, 2**26])  # whether parts of means are to be added up in front of the gates
def test_networks_give_what_the_reference_gives(most_read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    kernels = "downmix.kernels.triton"
    linear_map = importlib.import_module(f"{kernels}._pix_linear")
    launches = [importlib.import_module(f"{kernels}.pix_sample")._plan, linear_map.forward_launch]
    monkeypatch.setattr(linear_map, "_MOST_READ", most_read)
    for remembered in launches:
        remembered.cache_clear()
    network = timm.create_model("test_pix_resnet", layers=(2, 1, 1, 1)).to(DEVICE).double()
    settle_batch_norms(network, torch.randn(4, 3, 32, 32, device=DEVICE).double())
    network = network.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32, device=DEVICE).double().contiguous(memory_format=torch.channels_last)
    found: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            inference = network.eval()(x)
        y = network(x)
        found[:] = [inference, y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    said = downmix.explain_backend(run)
    assert f"pick_or_mix runs {kernels}.pix_sample" in said
    assert (f"add_relu_mean_ runs {kernels}.add_relu_mean" in said) == (most_read == 0)
    got = list(found)
    with downmix.use_backend("reference"):
        run()
    torch.testing.assert_close(got, found)
    for remembered in launches:
        remembered.cache_clear()
