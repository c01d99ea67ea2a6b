import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import downmix
from downmix.ops import lip_pool, soft_pool

from .by_the_book import pool_by_the_book, window_of
from .standard import StandardTests

POOLS = {1: lip_pool.lip_pool1d, 2: lip_pool.lip_pool2d, 3: lip_pool.lip_pool3d}
SOFT_POOLS = {1: soft_pool.soft_pool1d, 2: soft_pool.soft_pool2d, 3: soft_pool.soft_pool3d}


def by_the_book(x: Tensor, logits: Tensor, *window: Any, **option: Any) -> Tensor:
    """The specification's formula, a window at a time."""

    def mean(values: list[float], logits: list[float]) -> float:
        weights = [math.exp(logit) for logit in logits]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    return pool_by_the_book(mean, x, *window, others=(logits,), **option)


class TestLIPPool(StandardTests):
    operator: ClassVar = lip_pool._lip_pool
    dtypes: ClassVar = (torch.float32, torch.bfloat16)
    options: ClassVar = [
        {},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": (1, 2), "dilation": (2, 1), "ceil_mode": True},
    ]

    def inputs(self, batch: int = 2, **option: Any) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, 3, 5).double(), torch.randn(batch, 3, 3, 5).double()

    def call(self, *tensors: Tensor, **option: Any) -> Tensor:
        return lip_pool.lip_pool2d(*tensors, **({"kernel_size": 2} | option))

    def constants(self, **option: Any) -> tuple[Any, ...]:
        return window_of(2, **option)

    def test_equals_the_specification(self, option: dict[str, Any]) -> None:
        x, logits = self.inputs()
        torch.testing.assert_close(self.call(x, logits, **option), by_the_book(x, logits, **option))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_is_soft_pool_where_logits_are_the_values(n: int) -> None:
    # Kernels take a map for one of three dimensions in each case, and tests/kernels has random ones of all.
    with downmix.use_backend("auto" if n == 2 else "reference"):
        x = torch.randn(2, 2, *(7, 5, 4)[:n], dtype=torch.float64)
        x[0, 0, 0], x[1, 1] = math.inf, -math.inf
        for window in ((3, 2, 1), (2, 2, 0, 1, True), (2, 1, 1, 2)):
            torch.testing.assert_close(POOLS[n](x, x, *window), SOFT_POOLS[n](x, *window))
        finite = x.nan_to_num(posinf=1, neginf=0)[:1, :1].requires_grad_()
        exact, ours = (
            torch.autograd.grad(y.sum(), finite)[0]
            for y in (SOFT_POOLS[n](finite, 3, 2, 1), POOLS[n](finite, finite, 3, 2, 1))
        )
        torch.testing.assert_close(ours, exact)
        assert torch.autograd.gradcheck(
            lambda x, logits: POOLS[n](x, logits, 3, 2, 1), (finite, torch.rand_like(finite).requires_grad_())
        )


def test_from_average_to_maximum() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    window = (3, 2, 1)
    average = F.avg_pool2d(x, *window, count_include_pad=False)
    torch.testing.assert_close(lip_pool.lip_pool2d(x, torch.full_like(x, -5), *window), average)
    steep = [lip_pool.lip_pool2d(x, factor * x, *window) for factor in (1, 20, 1e4)]
    distance = [(F.max_pool2d(x, *window) - y).abs().max().item() for y in steep]
    assert distance[0] > 0.5 > 0.05 > distance[1] > distance[2]
    assert distance[2] < 1e-6


def test_gradients_worked_out_by_hand() -> None:
    x = torch.tensor([[[4.0, 8.0]]], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64, requires_grad=True)  # weights 1/4 and 3/4
    y = lip_pool.lip_pool1d(x, logits, 2)
    assert y.item() == pytest.approx(7)
    dx, dlogits = torch.autograd.grad(y, (x, logits))
    torch.testing.assert_close(dx.flatten().tolist(), [0.25, 0.75])
    torch.testing.assert_close(dlogits.flatten().tolist(), [0.25 * (4 - 7), 0.75 * (8 - 7)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_every_finite_input(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    x = torch.tensor([[most, most, most, -most]], dtype=dtype)
    logits = torch.tensor([[most, most, -most, most]], dtype=dtype)
    assert lip_pool.lip_pool1d(x, logits, 2).tolist() == [[most, -most]]
    assert lip_pool.lip_pool1d(x, torch.full_like(x, -most), 2).tolist() == [[most, 0]]


@pytest.mark.parametrize(
    ("values", "logits", "y", "dx", "dlogits"),
    [
        ([2.0, math.inf], [0.0, -math.inf], 2.0, [1.0, 0.0], [0.0, 0.0]),
        ([2.0, math.nan], [0.0, -math.inf], 2.0, [1.0, 0.0], [0.0, 0.0]),
        ([2.0, 4.0], [math.inf, math.inf], 3.0, [0.5, 0.5], [0.0, 0.0]),
        ([2.0, 4.0], [-math.inf, -math.inf], 3.0, [0.5, 0.5], [0.0, 0.0]),
        ([2.0, math.inf], [math.inf, 0.0], 2.0, [1.0, 0.0], [0.0, 0.0]),
        ([2.0, math.inf], [0.0, -1e9], math.inf, [0.0, 0.0], [0.0, 0.0]),
        ([-math.inf, math.inf], [0.0, 0.0], math.nan, [0.0, 0.0], [0.0, 0.0]),
        ([2.0, math.nan], [0.0, 0.0], math.nan, [0.5, 0.5], [math.nan, math.nan]),
        ([2.0, 4.0], [0.0, math.nan], math.nan, [math.nan, math.nan], [math.nan, math.nan]),
        ([math.inf, 4.0], [0.0, math.nan], math.nan, [math.nan, math.nan], [math.nan, math.nan]),
        ([2.0, math.nan], [math.nan, -math.inf], math.nan, [math.nan, 0.0], [math.nan, 0.0]),
    ],
)
def test_values_that_are_not_finite(
    values: list[float], logits: list[float], y: float, dx: list[float], dlogits: list[float]
) -> None:
    tensors = [torch.tensor([[[*t, 0.0, 0.0]]], dtype=torch.float64).requires_grad_() for t in (values, logits)]
    result = lip_pool.lip_pool1d(*tensors, 2)
    torch.testing.assert_close(result.flatten().tolist(), [y, 0.0], equal_nan=True)
    gradients = torch.autograd.grad(result.sum(), tensors)
    expected = [[*dx, 0.5, 0.5], [*dlogits, 0.0, 0.0]]
    torch.testing.assert_close([g.flatten().tolist() for g in gradients], expected, equal_nan=True)


def test_padding_takes_no_part_and_a_window_may_hold_nothing() -> None:
    x = torch.full((1, 1, 4, 4), -3.0)
    for logits in (-1e9, -math.inf):
        torch.testing.assert_close(lip_pool.lip_pool2d(x, torch.full_like(x, logits), 3, 1, 1), x)
    assert lip_pool.lip_pool1d(x[0, :, :1, 0], x[0, :, :1, 0], 2, 1, 2, 3).isnan().any()


def test_dtypes_and_layouts_may_differ() -> None:
    x, logits = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    expected = lip_pool.lip_pool2d(x, logits, 2)
    y = lip_pool.lip_pool2d(x.to(memory_format=torch.channels_last), logits.double(), 2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)
    half = lip_pool.lip_pool2d(x.half(), logits, 2)
    torch.testing.assert_close(half, lip_pool.lip_pool2d(x.half().float(), logits, 2).half())
    torch.testing.assert_close(lip_pool.lip_pool2d(x[1], logits[1], (2,)), expected[1])


def test_operations() -> None:
    with FlopCounterMode(display=False) as counter:
        lip_pool.lip_pool2d(torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), 2)
    assert counter.get_total_flops() == 8 * 22


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            ValueError,
            r"shape of x, \[2, 2, 4, 4\], one for each value, got \[2, 1, 4, 4\]; exp",
        ),
        (torch.zeros(2, 2, 4, 4, device="meta"), ValueError, "got x on cpu and logits on meta; move logits there"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.int64), TypeError, "logits must be a tensor of float16.*int64"),
        (None, TypeError, "logits must be a floating-point tensor, got NoneType"),
    ],
)
def test_bad_logits_get_a_sentence(logits: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lip_pool.lip_pool2d(torch.randn(2, 2, 4, 4), logits, 2)
    with pytest.raises(ValueError, match="kernel_size must be an integer of 1 or more"):
        lip_pool.lip_pool2d(torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4), 0)
