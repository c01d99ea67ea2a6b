import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

import downmix
from downmix.ops import _windows, stochastic_pool

from .by_the_book import pool_by_the_book, window_of
from .standard import StandardTests


def mean(values: list[float]) -> float:
    return sum(value * value for value in values) / sum(values)


class _Stochastic(StandardTests):
    dtypes: ClassVar = (torch.float32, torch.bfloat16)
    options: ClassVar = [
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1), "ceil_mode": True}
    ]

    @pytest.mark.parametrize("backend", ["aot_eager"])  # test_compiled_draws_follow_the_generator has inductor
    def test_compile(self, backend: str) -> None:
        super().test_compile(backend)

    def constants(self, **option: Any) -> tuple[Any, ...]:
        return window_of(2, **option)


class TestDraw(_Stochastic):
    operator: ClassVar = stochastic_pool._stochastic_pool

    def inputs(self, batch: int = 2, **option: Any) -> tuple[Tensor, ...]:
        draws = torch.rand(batch, 3, *_windows.output_sizes((3, 5), *self.constants(**option)))
        return torch.rand(batch, 3, 3, 5).double() + 0.1, draws.double()

    def call(self, *tensors: Tensor, **option: Any) -> Tensor:
        return self.operator(*tensors, *self.constants(**option))

    def test_takes_the_first_whose_sum_exceeds_the_draw(self, option: dict[str, Any]) -> None:
        x, draws = self.inputs(**option)
        remaining = iter(draws.flatten().tolist())

        def first(values: list[float]) -> float:
            threshold = next(remaining) * sum(values)
            return next(value for i, value in enumerate(values) if sum(values[: i + 1]) > threshold)

        expected = pool_by_the_book(first, x, **option)
        torch.testing.assert_close(self.call(x, draws, **option), expected, rtol=0, atol=0)


class TestMean(_Stochastic):
    operator: ClassVar = stochastic_pool._stochastic_mean

    def inputs(self, batch: int = 2, **option: Any) -> tuple[Tensor, ...]:
        return (torch.rand(batch, 3, 3, 5).double() + 0.1,)

    def call(self, *tensors: Tensor, **option: Any) -> Tensor:
        return stochastic_pool.stochastic_pool2d(*tensors, **option)

    def test_equals_the_specification(self, option: dict[str, Any]) -> None:
        (x,) = self.inputs()
        expected = pool_by_the_book(mean, x, **option)
        torch.testing.assert_close(self.call(x, **option), expected)


@pytest.mark.parametrize(
    ("n", "window"),
    [
        (1, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (2, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (3, {"kernel_size": (2, 1, 2)}),
    ],
)
def test_other_windows(n: int, window: dict[str, Any]) -> None:
    pool = getattr(downmix, f"stochastic_pool{n}d")
    x = torch.rand(2, 2, *(5, 3, 4)[:n], dtype=torch.float64) + 0.1
    torch.testing.assert_close(pool(x, **window), pool_by_the_book(mean, x, **window))
    assert gradcheck(lambda t: pool(t, **window), x[:1, :1].detach().requires_grad_())
    assert torch.isin(pool(x, **window, training=True), x).all()


WINDOW = [0.0, 1.0, 0.0, 4.0, 2.5, 0.5, 0.0]


def test_draws_match_their_probabilities() -> None:
    x = torch.tensor(WINDOW).repeat(100_000).reshape(1, 1, -1)
    y = downmix.stochastic_pool1d(x, len(WINDOW), training=True)
    positive = sorted(value for value in WINDOW if value > 0)
    counts = [(y == value).sum().item() for value in positive]
    assert sum(counts) == 100_000  # nothing else is ever drawn
    expected = [100_000 * value / sum(WINDOW) for value in positive]
    stats = pytest.importorskip("scipy.stats")  # a machine for GPU tests may lack it
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert downmix.stochastic_pool1d(x[..., : len(WINDOW)], len(WINDOW)).item() == pytest.approx(mean(WINDOW))
    assert abs(y.mean().item() - mean(WINDOW)) < 5 * y.std().item() / math.sqrt(100_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_zeros_are_never_drawn_however_draws_are_rounded(dtype: torch.dtype) -> None:
    x = torch.rand(64, 16, 9, dtype=torch.float64).to(dtype).clamp(min=1e-3)
    x[..., ::3] = 0  # the first of each window, and x[..., 8] is the last that counts
    x = torch.cat([x, torch.zeros_like(x)], -1)
    for draw in (0.0, 1 - 2**-24, 1 - 2**-53, 1.0):
        draws = torch.full((64, 16, 1), draw, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        y = stochastic_pool._stochastic_pool(x, draws, [18], [18], [0], [1], False)
        assert torch.equal(y, x[..., 1:2] if draw == 0 else x[..., 8:9])


def test_the_gradient_goes_to_the_drawn_value() -> None:
    x = torch.tensor([[[0.0, 3.0, 0.0, 0.0, 2.0, 2.0]]], requires_grad=True)
    downmix.stochastic_pool1d(x, 2, training=True).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten()[:4].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert sorted(x.grad.flatten()[4:].tolist()) == [0.0, 1.0]


def test_the_gradient_of_the_mean_at_ties_and_zeros() -> None:
    x = torch.tensor([[[1.0, 1.0, 2.0, 3.0]]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: downmix.stochastic_pool1d(t, 2), x)
    x = torch.tensor([[[0.0, 4.0, 0.0, 0.0]]], requires_grad=True)
    downmix.stochastic_pool1d(x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [-1.0, 1.0, 0.0, 0.0]  # (2a − y) / Σa, at 0 from the right


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float32, 3e38), (torch.float32, 1e-38), (torch.float16, 6e4), (torch.bfloat16, 3e38)]
)
def test_large_and_small_values_stay(dtype: torch.dtype, large: float, training: bool) -> None:
    x = torch.full((1, 1, 4), large, dtype=dtype, requires_grad=True)
    y = downmix.stochastic_pool1d(x, 2, training=training)
    torch.testing.assert_close(y / large, torch.ones(1, 1, 2, dtype=dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("training", [False, True])
def test_values_that_are_not_finite(training: bool) -> None:
    x = torch.tensor([[[1.0, math.inf, math.nan, 1.0, math.nan, math.inf, 2.0, 2.0]]], requires_grad=True)
    y = downmix.stochastic_pool1d(x, 2, training=training)
    torch.testing.assert_close(y.flatten().tolist(), [math.inf, math.nan, math.nan, 2.0], equal_nan=True)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_draws_follow_the_generator(n: int) -> None:
    pool = getattr(downmix, f"StochasticPool{n}d")(2)
    x = torch.rand(2, 3, *[8] * n)
    torch.manual_seed(1)
    first, second = pool(x), pool(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(pool(x), first)
    assert torch.equal(pool(x[0]), pool.eval()(x[0])) is False
    assert torch.equal(pool(x), pool(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_draws_follow_the_generator(backend: str) -> None:
    torch.compiler.reset()
    pool = torch.compile(nn.Sequential(nn.ReLU(), downmix.StochasticPool2d(4)), backend=backend, fullgraph=True)
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    torch.manual_seed(1)
    first, second = pool(x), pool(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(pool(x), first)
    (grad,) = torch.autograd.grad(first.sum(), x)
    assert grad.sum() == (first > 0).sum()
    expected = downmix.stochastic_pool2d(x.detach().relu(), 4)
    assert abs((first - expected).mean().item()) < 5 * (first - expected).std().item() / math.sqrt(first.numel())


def test_vmap() -> None:
    x = torch.rand(1, 3, 8, 8).expand(4, 1, 3, 8, 8)

    def draw(sample: Tensor) -> Tensor:
        return downmix.stochastic_pool2d(sample, 2, training=True)

    different = torch.func.vmap(draw, randomness="different")(x)
    assert all(not torch.equal(different[0], other) for other in different[1:])
    same = torch.func.vmap(draw, randomness="same")(x)
    assert all(torch.equal(same[0], other) for other in same[1:])


def test_negative_values_are_refused_where_they_are_seen_and_count_as_zero_elsewhere() -> None:
    x = torch.randn(1, 2, 4, 4)
    for training in (False, True):
        with pytest.raises(ValueError, match=r"needs values of 0 or above.*got -[0-9.]+; use it after a ReLU"):
            downmix.stochastic_pool2d(x, 2, training=training)
    torch.compiler.reset()
    compiled = torch.compile(lambda t: downmix.stochastic_pool2d(t, 2), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), downmix.stochastic_pool2d(x.relu(), 2))
    vmapped = torch.func.vmap(lambda t: downmix.stochastic_pool2d(t, 2))(x)
    torch.testing.assert_close(vmapped, downmix.stochastic_pool2d(x.relu(), 2))


def test_operations() -> None:
    x = torch.rand(1, 2, 4, 4)
    for training in (True, False):
        with FlopCounterMode(display=False) as counter:
            downmix.stochastic_pool2d(x, 2, training=training)
        assert counter.get_total_flops() == 8 * (19 if training else 23)
