"""The Triton kernels in Triton's interpreter, or on a GPU where there is one."""

import importlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import downmix
from downmix import PiX
from downmix.kernels import _linear as linear
from downmix.kernels._layouts import layout as layout_of
from downmix.layers._shared_passes import _SLOPES
from downmix.ops import _define, pix, soft_pool
from downmix.ops.add_relu_mean import add_relu_mean_, whole
from downmix.tools._bench_networks import settle_batch_norms

from ..ops.standard import LAYOUTS
from ..ops.test_add_relu_mean import check as check_add_relu_mean
from ..ops.test_pix import TestPickOrMix as _TestPickOrMix
from ..ops.test_soft_pool import TestSoftPool as _TestSoftPool
from .random_cases import (
    DEVICE,
    check,
    check_pick_or_mix,
    check_pix_layer,
    check_soft_pool,
    check_whole_pix_layer,
)

triton = pytest.importorskip("triton")
interpreter = pytest.importorskip("tests.kernels.interpreter")
_common = pytest.importorskip("downmix.kernels.triton._common")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy, about NaN and infinity


def launched_with_what_it_was_compiled_for(
    launch: Any, *tensors: torch.Tensor, here: Callable[..., None] = _common.Launch.here
) -> None:
    """As a launch keeps its code, another dtype would be read and written as the first; the interpreter has no code."""
    dtypes = [tensor.dtype for tensor in tensors]
    assert launch.__dict__.setdefault("dtypes", dtypes) == dtypes
    here(launch, *tensors)


@pytest.fixture(autouse=True)
def triton_for_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE == "cpu":
        interpreter.compute_as_compiled_code(monkeypatch)
    monkeypatch.setattr(_common.Launch, "here", launched_with_what_it_was_compiled_for)
    monkeypatch.setattr(_define, "_KERNEL_FOLDERS", {"cpu": "triton", "cuda": "triton"})
    _define._kernel_module.cache_clear()
    yield
    _define._kernel_module.cache_clear()


class _OnTriton:
    test_onnx = None  # its runtime takes tensors on the CPU
    if DEVICE == "cpu":
        # These run references only, or what test_as_exact_as_the_reference has tested, a thousand launches at a time.
        test_gradcheck = test_second_derivatives = test_compile = None
        test_export_with_any_batch_size = test_torch_func = test_opcheck = None

    def inputs(self, batch: int = 2, **option: Any) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(DEVICE) for tensor in super().inputs(batch, **option))

    @pytest.fixture(autouse=True)
    def the_kernel_runs(self, triton_for_all: None) -> None:
        option = self.options[0]
        kernel = self.operator.kernel(*self.inputs(**option), *self.constants(**option))
        assert getattr(kernel, "__name__", kernel) == f"downmix.kernels.triton.{self.operator.stem}"


class TestPickOrMixOnTriton(_OnTriton, _TestPickOrMix):
    @pytest.mark.parametrize("reduction", [1, 3, 4])
    def test_equals_the_specification(self, option: dict[str, Any], reduction: int) -> None:
        super().test_equals_the_specification(option, reduction)


class TestSoftPoolOnTriton(_OnTriton, _TestSoftPool):
    pass


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(10))
def test_pick_or_mix_in_random_cases(seed: int) -> None:
    check_pick_or_mix(seed, cases=12)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(10))
def test_gradients_of_pix_layers_in_random_cases(seed: int) -> None:
    check_pix_layer(seed, cases=12, roundings=0)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(10))
def test_whole_pix_layers_in_random_cases(seed: int) -> None:
    check_whole_pix_layer(seed, cases=12)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(10))
def test_soft_pool_in_random_cases(seed: int) -> None:
    check_soft_pool(seed, cases=12)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("reduction", "dtype", "channels", "pack"),
    [
        *((5, torch.float32, channels, 4) for channels in (24, 30, 41)),
        (6, torch.float32, 30, 0),  # five groups, in pairs
        (6, torch.float32, 23, 2),
        (9, torch.float32, 48, 2),
        (12, torch.float32, 31, 1),
        (17, torch.float32, 20, 0),  # more than registers hold
        (4, torch.bfloat16, 24, 2),
        (2, torch.float16, 19, 4),
        (3, torch.bfloat16, 41, 8),
        (16, torch.bfloat16, 41, 1),
        (3, torch.float64, 17, 2),
    ],
)
def test_groups_that_a_thread_has_whole(reduction: int, dtype: torch.dtype, channels: int, pack: int) -> None:
    x = LAYOUTS["channels_last"](torch.randn(2, channels, 3, 5, device=DEVICE).to(dtype))
    p = torch.rand(2, -(-channels // reduction), device=DEVICE).to(dtype)
    plan = importlib.import_module("downmix.kernels.triton._pix_tiles").plan
    for fusion, operator, legacy in (("threshold", "max+avg", False), ("weighted", "max+avg", True)):
        assert plan({"X": x}, p, reduction, fusion, operator, legacy, loads=2)[2]["PACK"] == pack
        for values in (x, x.round(), torch.where(x > 1.5, math.nan, x)):  # the latter two with several winners
            check(pix._pick_or_mix, [values, p], (reduction, 0.5, fusion, operator, legacy), "channels_last")
    for operator in ("min", "avg", "max"):
        check(pix._pick_or_mix, [x, p], (reduction, 0.5, "threshold", operator, False), "channels_last")


@pytest.mark.parametrize("limit", ["_MOST_ROWS", "_FARTHEST"])
def test_maps_of_too_many_programs_or_offsets(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a grid of one dimension, or offsets of 64 bits."""
    tiles = importlib.import_module("downmix.kernels.triton._pix_tiles")
    kernels = [importlib.import_module(f"downmix.kernels.triton.{name}") for name in ("pix", "pix_layer")]
    launches = [kernels[0].forward_launch, kernels[0]._backward_launch, kernels[1]._launch_logits, kernels[1]._launch_x]
    x, p = torch.empty(2, 64, 4200, 4200, device="meta"), torch.empty(2, 16, device="meta")
    assert tiles.plan({"X": x}, p, 4, "threshold", "max+avg", False, loads=1)[2]["INDEX"] is triton.language.int64
    assert tiles.programs_of(3, 65536, 2) == ((3 * 65536 * 2, 1, 1), {"IN_SPACE": False})
    monkeypatch.setattr(tiles, limit, 1)
    for launch in launches:
        launch.cache_clear()
    check_pick_or_mix(0, cases=12)
    check_pix_layer(0, cases=6, roundings=0)
    for launch in launches:
        launch.cache_clear()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_long_reduction_and_long_windows(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(1, 130, 2, 3, device=DEVICE))
    for reduction in (65, 128):
        p = torch.rand(1, -(-130 // reduction), device=DEVICE)
        check(pix._pick_or_mix, [x, p], (reduction, 0.5, "weighted", "max+avg", False), layout)
    for shape, kernel, stride in [((1, 2, 33, 35), 33, 1), ((1, 2, 20, 24), 18, 2), ((1, 2, 5, 5), 5, 5)]:
        x = LAYOUTS[layout](10 * torch.randn(shape, device=DEVICE))
        check(soft_pool._soft_pool, [x], ([kernel] * 2, [stride] * 2, [0, 0], [1, 1], False, "exact"), layout)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("window", [(3, 2, 1), (5, 1, 2), (3, 1, 0), (2, 1, 1), (4, 3, 0)], ids=str)
def test_overlapping_windows_of_calm_and_of_restless_values(window: tuple[int, ...], layout: str) -> None:
    windows = (*([n] * 2 for n in window), [1, 1], window[0] == 4)
    x, odd = (torch.randn(2, 3, 6, width, device=DEVICE) for width in (12, 11))  # of vectors, and of single columns
    outliers, steep, low = x.clone(), odd.clone(), x.clone()
    outliers[1, 2, 4, 3], outliers[1, 2, 5, 9] = 200, -math.inf
    steep[:, :, 4:] += 60  # so that lanes are calm at first
    low[:, :, 4:] -= 19  # calm, but for a large gradient
    for values in (12 + 3 * odd, 500 + x, 15 * odd, outliers, steep, x.bfloat16(), odd.double()):
        check(soft_pool._soft_pool, [LAYOUTS[layout](values)], (*windows, "exact"), layout)
    for values, gradient, scale in ((x, "paper", 1.0), (x, "exact", 1e12), (low, "exact", 1e30)):
        check(soft_pool._soft_pool, [LAYOUTS[layout](values)], (*windows, gradient), layout, grad_scale=scale)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("window", [(3, 2, 1), (5, 1, 2)], ids=str)
def test_rows_that_are_loaded_ahead(window: tuple[int, ...], layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = importlib.import_module("downmix.kernels.triton._overlapping")
    kernel = importlib.import_module("downmix.kernels.triton.soft_pool")
    for shares in (rows.FORWARD, rows.BACKWARD):
        for inner, share in shares.items():
            monkeypatch.setitem(shares, inner, share._replace(steps=2, ahead=1))
    for launch in (kernel._forward_launch, kernel._backward_launches):
        launch.cache_clear()
    calm = torch.randn(2, 3, 9, 11, device=DEVICE)
    for values in (calm, 15 * calm, calm.bfloat16()):
        check(
            soft_pool._soft_pool,
            [LAYOUTS[layout](values)],
            (*([n] * 2 for n in window), [1, 1], False, "exact"),
            layout,
        )
    for launch in (kernel._forward_launch, kernel._backward_launches):
        launch.cache_clear()


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="compiled code cannot say so")
@pytest.mark.parametrize(("window", "height"), [((3, 2, 1), 144), ((5, 1, 2), 71), ((4, 3, 0), 217)], ids=str)
def test_calm_windows_take_one_walk(window: tuple[int, ...], height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(found: object) -> None:
        raise AssertionError("a second walk")

    overlapping = importlib.import_module("downmix.kernels.triton._overlapping")
    monkeypatch.setattr(overlapping, "_again", again)
    windows = (*([n] * 2 for n in window), [1, 1], True, "exact")
    x = (100 + torch.randn(1, 2, height, 7)).requires_grad_()  # chunks of rows, the last but the edge of a window
    soft_pool._soft_pool(x, *windows).sum().backward()
    x = (torch.arange(20.0) > 11).mul(100.0).view(1, 1, 20, 1).expand(1, 1, 20, 7)
    with pytest.raises(Exception, match="a second walk"):
        soft_pool._soft_pool(x, *windows)


def test_whether_a_kernel_runs_twice_the_same() -> None:
    x, p = (
        torch.randn(2, 4, 24, 24, device=DEVICE, requires_grad=True),
        torch.rand(2, 1, device=DEVICE, requires_grad=True),
    )
    for output in (lambda: downmix.pick_or_mix(x, p, 4), lambda: soft_pool.soft_pool2d(x, 3, 2, 1)):
        first, second = (torch.autograd.grad(output().square().sum(), (x, p), allow_unused=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("programs", [1, 4096])  # that leave means, or parts of sums
def test_add_relu_mean(programs: int, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = importlib.import_module("downmix.kernels.triton.add_relu_mean")
    monkeypatch.setattr(_common, "_SUMMING", programs)
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
    monkeypatch.setattr(_common, "_SUMMING", programs)
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


def test_other_dtypes_get_a_sentence() -> None:
    x = torch.zeros(1, 4, 2, 2).to(torch.float8_e5m2)
    said = pix._pick_or_mix.kernel(x, torch.zeros(1, 1), 4, 0.5, "threshold", "max", False)
    assert said == "the kernel takes float16, bfloat16, float32 and float64, and x is torch.float8_e5m2"
    said = soft_pool._soft_pool.kernel(x, [2, 2], [2, 2], [0, 0], [1, 1], False, "exact")
    assert said == "the kernel takes float16, bfloat16, float32 and float64, and x is torch.float8_e5m2"
