"""The Triton kernels in Triton's interpreter, or on a GPU where there is one."""

import importlib
import math
import os
from typing import Any

import pytest
import torch

import downmix
from downmix.ops import pix, soft_pool

from ..ops.standard import LAYOUTS
from ..ops.test_pix import TestPickOrMix as _TestPickOrMix
from ..ops.test_soft_pool import TestSoftPool as _TestSoftPool
from .random_cases import (
    DEVICE,
    check,
    check_pick_or_mix,
    check_pix_layer,
    check_soft_pool,
)

pytestmark = pytest.mark.usefixtures("triton_for_all")


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
    plan = importlib.import_module("downmix.kernels.triton._pix_plan").plan
    for fusion, operator, legacy in (("threshold", "max+avg", False), ("weighted", "max+avg", True)):
        assert plan({"X": x}, p, reduction, fusion, operator, legacy, loads=2)[2]["PACK"] == pack
        for values in (x, x.round(), torch.where(x > 1.5, math.nan, x)):  # the latter two with several winners
            check(pix._pick_or_mix, [values, p], (reduction, 0.5, fusion, operator, legacy), "channels_last")
    for operator in ("min", "avg", "max"):
        check(pix._pick_or_mix, [x, p], (reduction, 0.5, "threshold", operator, False), "channels_last")


@pytest.mark.parametrize("limit", ["_MOST_ROWS", "_FARTHEST"])
def test_maps_of_too_many_programs_or_offsets(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a grid of one dimension, or offsets of 64 bits."""
    tiles = importlib.import_module("downmix.kernels.triton._pix_plan")
    kernels = [importlib.import_module(f"downmix.kernels.triton.{name}") for name in ("pix", "pix_layer")]
    launches = [kernels[0].forward_launch, kernels[0]._backward_launch, kernels[1]._launch_logits, kernels[1]._launch_x]
    x, p = torch.empty(2, 64, 4200, 4200, device="meta"), torch.empty(2, 16, device="meta")
    assert tiles.plan({"X": x}, p, 4, "threshold", "max+avg", False, loads=1)[2]["INDEX"] is tiles.tl.int64
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
    for values in (12 + 3 * odd, 500 + x, x - 20_000, 15 * odd, outliers, steep, x.bfloat16(), odd.double()):
        check(soft_pool._soft_pool, [LAYOUTS[layout](values)], (*windows, "exact"), layout)
    for values, gradient, scale in ((x, "paper", 1.0), (x, "exact", 1e12), (low, "exact", 1e30)):
        check(soft_pool._soft_pool, [LAYOUTS[layout](values)], (*windows, gradient), layout, grad_scale=scale)


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


def test_other_dtypes_get_a_sentence() -> None:
    x = torch.zeros(1, 4, 2, 2).to(torch.float8_e5m2)
    said = pix._pick_or_mix.kernel(x, torch.zeros(1, 1), 4, 0.5, "threshold", "max", False)
    assert said == "the kernel takes float16, bfloat16, float32 and float64, and x is torch.float8_e5m2"
    said = soft_pool._soft_pool.kernel(x, [2, 2], [2, 2], [0, 0], [1, 1], False, "exact")
    assert said == "the kernel takes float16, bfloat16, float32 and float64, and x is torch.float8_e5m2"
