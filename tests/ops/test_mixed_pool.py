import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import downmix
from downmix.ops import mixed_pool

from .by_the_book import pool_by_the_book

POOLS = {1: mixed_pool.mixed_pool1d, 2: mixed_pool.mixed_pool2d, 3: mixed_pool.mixed_pool3d}


@pytest.mark.parametrize(
    ("n", "window"),
    [
        (1, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (1, {"kernel_size": 2, "stride": 1, "dilation": 3, "padding": 1}),
        (2, {"kernel_size": 2, "ceil_mode": True}),
        (2, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 1), "dilation": (2, 1)}),
        (3, {"kernel_size": 2, "stride": 2, "padding": 1}),
        (3, {"kernel_size": (2, 5, 4), "stride": 2, "padding": (0, 1, 1)}),  # larger than the map
        (3, {"kernel_size": 4, "ceil_mode": True}),
    ],
)
def test_equals_the_specification(n: int, window: dict[str, Any]) -> None:
    x = torch.randn(2, 2, *(5, 4, 3)[:n], dtype=torch.float64)
    expected = pool_by_the_book(lambda v: 0.3 * max(v) + 0.7 * sum(v) / len(v), x, **window)
    torch.testing.assert_close(POOLS[n](x, 0.3, **window), expected)
    torch.testing.assert_close(POOLS[n](x[1], 0.3, **window), expected[1])
    alpha = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)  # unconstrained
    assert gradcheck(lambda t, a: POOLS[n](t, a, **window), (x[:1].detach().requires_grad_(), alpha))


@pytest.mark.parametrize(("narrow", "dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_a_proportion_of_fewer_bits_is_not_rounded_again(narrow: torch.dtype, dtype: torch.dtype) -> None:
    x, alpha = torch.randn(2, 3, 4, 4, dtype=dtype), torch.tensor(0.1).to(narrow)
    y = downmix.mixed_pool2d(x, alpha, 2)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(y, downmix.mixed_pool2d(x, alpha.item(), 2), rtol=tolerance, atol=tolerance)


def test_values_that_are_not_finite() -> None:
    x = torch.tensor([[[1.0, math.inf, 1.0, math.nan]]])
    torch.testing.assert_close(downmix.mixed_pool1d(x, 0.5, 2), torch.tensor([[[math.inf, math.nan]]]), equal_nan=True)


def test_dtypes_and_layouts() -> None:
    x, alpha = torch.randn(2, 3, 9, 8), torch.tensor(0.3, dtype=torch.float64)
    for dtype in (torch.float16, torch.bfloat16):
        low = x.to(dtype)
        assert downmix.mixed_pool2d(low, alpha, 2).dtype == dtype
        assert torch.equal(downmix.mixed_pool2d(low, alpha, 2), downmix.mixed_pool2d(low.float(), alpha, 2).to(dtype))
    y = downmix.mixed_pool2d(x.to(memory_format=torch.channels_last), alpha, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert downmix.mixed_pool2d(x[:0], alpha, 2).shape == (0, 3, 4, 4)
    assert downmix.mixed_pool2d(x.to("meta"), 0.5, 2).shape == (2, 3, 4, 4)


def test_the_proportion_is_learned() -> None:
    x = torch.randn(16, 3, 8, 8)
    target = nn.functional.max_pool2d(x, 2)
    pool = downmix.MixedPool2d(2)
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(pool(x), target).backward()
        optimizer.step()
    assert pool.alpha.item() == pytest.approx(1, abs=1e-2)


def test_vmap_over_samples_and_proportions() -> None:
    x, alpha = torch.randn(4, 3, 8, 8), torch.rand(4)

    def pool(sample: Tensor, proportion: Tensor) -> Tensor:
        return downmix.mixed_pool2d(sample, proportion, 2)

    expected = torch.stack([pool(*pair) for pair in zip(x, alpha, strict=True)])
    torch.testing.assert_close(torch.func.vmap(pool)(x, alpha), expected)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        ("0.5", TypeError, "alpha must be a number or a tensor of one, got '0.5'"),
        (True, TypeError, "alpha must be a number or a tensor of one, got True"),
        (torch.rand(3), ValueError, r"alpha must hold a single number, got a tensor of shape \[3\]"),
        (torch.tensor(1j), TypeError, "alpha must be a number or a tensor of one, got a tensor of torch.complex64"),
        (torch.tensor(True), TypeError, "alpha must be a number or a tensor of one, got a tensor of torch.bool"),
    ],
)
def test_a_bad_proportion_gets_a_sentence(alpha: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        downmix.mixed_pool2d(torch.randn(2, 2, 4, 4), alpha, 2)
    with pytest.raises(error, match=message):
        downmix.MixedPool2d(2, alpha=alpha)
