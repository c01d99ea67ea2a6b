import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

import downmix
from downmix.ops import power_pool

from .by_the_book import pool_by_the_book, window_of
from .standard import StandardTests

POOLS = {1: power_pool.power_avg_pool1d, 2: power_pool.power_avg_pool2d, 3: power_pool.power_avg_pool3d}


def by_the_book(x: Tensor, *window: Any, norm_type: float = 2.0, **options: Any) -> Tensor:
    def mean(values: list[float]) -> float:
        return (sum(abs(value) ** norm_type for value in values) / len(values)) ** (1 / norm_type)

    return pool_by_the_book(mean, x, *window, **options)


class TestPowerPool(StandardTests):
    operator: ClassVar = power_pool._power_pool
    dtypes: ClassVar = (torch.float32, torch.bfloat16)
    options: ClassVar = [
        {
            "kernel_size": (2, 3),
            "stride": (1, 2),
            "padding": (0, 1),
            "dilation": (2, 1),
            "ceil_mode": True,
            "norm_type": 0.7,
        }
    ]

    @pytest.mark.parametrize("backend", ["aot_eager"])  # inductor is slow, and has SoftPool's reference to show
    def test_compile(self, backend: str) -> None:
        super().test_compile(backend)

    def inputs(self, batch: int = 2, **option: Any) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, 3, 5).double(),)

    def call(self, *tensors: Tensor, **option: Any) -> Tensor:
        return power_pool.power_avg_pool2d(*tensors, **option)

    def constants(self, *, norm_type: float, **window: Any) -> tuple[Any, ...]:
        return *window_of(2, **window), norm_type

    def test_equals_the_specification(self, option: dict[str, Any]) -> None:
        (x,) = self.inputs()
        torch.testing.assert_close(self.call(x, **option), by_the_book(x, **option))


@pytest.mark.parametrize("norm_type", [1, 2.0, 0.5, 7.3])
@pytest.mark.parametrize(
    ("n", "window"),
    [
        (1, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (2, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (3, {"kernel_size": (2, 1, 2)}),
    ],
)
def test_other_windows(n: int, window: dict[str, Any], norm_type: float) -> None:
    x = torch.randn(2, 2, *(5, 3, 4)[:n], dtype=torch.float64)
    torch.testing.assert_close(
        POOLS[n](x, **window, norm_type=norm_type), by_the_book(x, **window, norm_type=norm_type)
    )
    assert gradcheck(lambda t: POOLS[n](t, **window, norm_type=norm_type), x[:1, :1].detach().requires_grad_())


def test_between_the_average_and_the_maximum() -> None:
    x = torch.randn(2, 3, 8, 8)
    size = x.abs()
    torch.testing.assert_close(downmix.power_avg_pool2d(x, 2, norm_type=1.0), nn.functional.avg_pool2d(size, 2))
    torch.testing.assert_close(downmix.power_avg_pool2d(x, 2, norm_type=1e6), nn.functional.max_pool2d(size, 2))
    torch.testing.assert_close(downmix.power_avg_pool2d(x, 2), nn.functional.lp_pool2d(x, 2.0, 2) / 2)


@pytest.mark.parametrize("norm_type", [2.0, 3.0])
def test_the_gradient_is_exact_at_ties_and_at_zeros(norm_type: float) -> None:
    x = torch.tensor([[[1.0, 1.0, -1.0, 2.0, 0.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: downmix.power_avg_pool1d(t, 3, norm_type=norm_type), x)


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 1.5, 2.0])
def test_no_gradient_flows_to_zeros(norm_type: float) -> None:
    x = torch.tensor([[[0.0, 0.0, 0.0, 3.0]]], requires_grad=True)
    y = downmix.power_avg_pool1d(x, 2, norm_type=norm_type)
    expected = 3 * 0.5 ** (1 / norm_type)
    torch.testing.assert_close(y.flatten().tolist(), [0.0, expected])
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten().tolist(), [0.0, 0.0, 0.0, expected / 3])


@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float32, 1e30), (torch.float32, 1e-30), (torch.float16, 3e4), (torch.bfloat16, 1e38)]
)
def test_large_and_small_values_stay(dtype: torch.dtype, large: float) -> None:
    x = torch.tensor([[[large, -large, large, 0.0]]], dtype=dtype, requires_grad=True)
    y = downmix.power_avg_pool1d(x, 2)
    torch.testing.assert_close(y / large, torch.tensor([[[1.0, math.sqrt(0.5)]]], dtype=dtype))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[[0.5, -0.5, math.sqrt(0.5), 0.0]]], dtype=dtype))


@pytest.mark.parametrize(
    ("window", "y", "flows"),
    [
        ([1.0, -math.inf], math.inf, [0.0, 0.0]),
        ([2.0, math.nan], math.nan, [math.nan, math.nan]),
        ([math.inf, math.nan], math.nan, [math.nan, math.nan]),
    ],
)
def test_values_that_are_not_finite(window: list[float], y: float, flows: list[float]) -> None:
    x = torch.tensor([[[*window, 1.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    result = downmix.power_avg_pool1d(x, 2)
    torch.testing.assert_close(result.flatten().tolist(), [y, 1.0], equal_nan=True)
    (got,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(got.flatten().tolist(), [*flows, 0.5, 0.5], equal_nan=True)


def test_a_window_without_values_gives_zero() -> None:
    x = torch.ones(1, 1, 1, requires_grad=True)
    y = downmix.power_avg_pool1d(x, 2, 1, padding=2, dilation=3)
    assert y.flatten().tolist() == [0.0, 0.0]


def test_operations() -> None:
    with FlopCounterMode(display=False) as counter:
        downmix.power_avg_pool2d(torch.randn(1, 2, 4, 4), 2)
    assert counter.get_total_flops() == 8 * 21


@pytest.mark.parametrize(
    ("norm_type", "error", "message"),
    [
        (0, ValueError, "norm_type must be a finite number above 0, got 0"),
        (math.inf, ValueError, "for its limit inf use nn.MaxPool on x.abs()"),
        (math.nan, ValueError, "got nan"),
        ("2", TypeError, "norm_type must be a number above 0, got '2'"),
        (True, TypeError, "norm_type must be a number above 0, got True"),
    ],
)
def test_bad_powers_get_a_sentence(norm_type: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        downmix.power_avg_pool2d(torch.randn(2, 2, 4, 4), 2, norm_type=norm_type)
    with pytest.raises(error, match=message):
        downmix.PowerAvgPool2d(2, norm_type=norm_type)
