import itertools
import math
from typing import Any, ClassVar

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from downmix.ops import soft_pool

from .by_the_book import pool_by_the_book, window_of
from .standard import LAYOUTS, StandardTests, with_gradients

POOLS = {1: soft_pool.soft_pool1d, 2: soft_pool.soft_pool2d, 3: soft_pool.soft_pool3d}


def softened(values: list[float]) -> float:
    weights = [math.exp(value - max(values)) for value in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def by_the_book(x: Tensor, *window: Any, **options: Any) -> Tensor:
    return pool_by_the_book(softened, x, *window, **options)


class TestSoftPool(StandardTests):
    operator: ClassVar = soft_pool._soft_pool
    options: ClassVar = [
        {},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": (1, 2), "dilation": (2, 1)},
        {"kernel_size": 2, "stride": 2, "ceil_mode": True},
        {"kernel_size": (1, 2), "stride": (2, 3)},
        {"kernel_size": (3, 5)},
    ]

    def inputs(self, batch: int = 2, **option: Any) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, 3, 5).double(),)

    def call(self, *tensors: Tensor, **option: Any) -> Tensor:
        return soft_pool.soft_pool2d(*tensors, **({"kernel_size": 2} | option))

    def constants(self, **option: Any) -> tuple[Any, ...]:
        return *window_of(2, **option), "exact"

    def test_equals_the_specification(self, option: dict[str, Any]) -> None:
        (x,) = self.inputs()
        torch.testing.assert_close(self.call(x, **option), by_the_book(x, **option).to(x.device))

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("kernel_size", [2, 3, 4])
    def test_what_no_window_has_changes_nothing(self, kernel_size: int, layout: str) -> None:
        """It lies where the next windows would, with rows and columns that the last ones have too."""
        option = {"kernel_size": kernel_size, "stride": 2}
        x = LAYOUTS[layout](torch.randn(2, 3, kernel_size + 5, kernel_size + 5, device=self.inputs()[0].device))
        windows = [slice(kernel_size + 4)] * 2
        expected = with_gradients(lambda t: self.call(t, **option), [x], torch.ones_like)
        for value in (math.inf, math.nan, 1e30):
            other = torch.full_like(x, value)
            other[..., *windows] = x[..., *windows]
            got = with_gradients(lambda t: self.call(t, **option), [other], torch.ones_like)
            for ours, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(ours, theirs)

    def test_the_paper_gradient_is_the_weights(self, option: dict[str, Any]) -> None:
        """Where weights are constants, the gradient is that of Σ w a with the weights left out of the graph."""
        (x,) = self.leaves(option)
        constants = self.constants(**option)
        y = self.call(x, gradient="paper", **option)
        assert torch.equal(y, self.call(x, **option))
        grad = torch.randn_like(y)
        (got,) = torch.autograd.grad(y, x, grad)
        windows = torch.zeros_like(got)
        for b, c, *place in (index.tolist() for index in torch.ones_like(y).nonzero()):
            at = [
                [place[i] * s - p + j * d for j in range(k)]
                for i, (k, s, p, d) in enumerate(zip(*constants[:4], strict=True))
            ]
            inside = [(h, w) for h in at[0] for w in at[1] if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]]
            total = sum(math.exp(x[b, c, h, w].item()) for h, w in inside)
            for h, w in inside:
                windows[b, c, h, w] += grad[(b, c, *place)] * math.exp(x[b, c, h, w].item()) / total
        torch.testing.assert_close(got, windows)


@pytest.mark.parametrize(
    ("n", "option"),
    [
        (1, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (1, {"kernel_size": 2, "dilation": 3, "stride": 1}),
        (3, {"kernel_size": 2}),
        (3, {"kernel_size": (2, 3, 1), "stride": (1, 2, 1), "padding": (1, 1, 0), "ceil_mode": True}),
    ],
)
def test_one_and_three_dimensions(n: int, option: dict[str, Any]) -> None:
    x = torch.randn(2, 2, *(7, 5, 4)[:n], dtype=torch.float64)
    torch.testing.assert_close(POOLS[n](x, **option), by_the_book(x, **option))
    assert torch.autograd.gradcheck(lambda t: POOLS[n](t, **option), x[:1, :1].detach().requires_grad_())


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "gradient"),
    [
        ([2, 2], [2, 2], [0, 0], [1, 1], False, "paper"),
        ([3, 2], [2, 1], [1, 0], [1, 2], True, "exact"),
        ([6, 6], [6, 6], [0, 0], [1, 1], False, "exact"),  # too many places to be parts
        ([3], [2], [1], [1], False, "exact"),
    ],
)
def test_the_compiled_reference_is_the_same_place_by_place(
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool, gradient: str
) -> None:
    window = kernel_size, stride, padding, dilation, ceil_mode
    torch.compiler.reset()
    compiled = torch.compile(soft_pool._reference, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 11):
        x = torch.randn(2, 3, *[size] * len(window[0]))
        x[0, 0, ..., 3], x[0, 1, ..., 5], x[0, 2, ..., 7] = torch.inf, -torch.inf, torch.nan
        got, expected = (
            with_gradients(lambda t, f=f: f(t, *window, gradient), [x]) for f in (compiled, soft_pool._reference)
        )
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_values_worked_out_by_hand() -> None:
    log = math.log
    # Weights 1 : 2 : 3 : 4, so y = (2 log 2 + 3 log 3 + 4 log 4) / 10, whatever is added to all of them.
    x = torch.tensor([0.0, log(2), log(3), log(4)], dtype=torch.float64).reshape(1, 1, 2, 2)
    y = (2 * log(2) + 3 * log(3) + 4 * log(4)) / 10
    assert soft_pool.soft_pool2d(x, 2).item() == pytest.approx(y)
    assert soft_pool.soft_pool2d(x + 1000, 2).item() == pytest.approx(1000 + y)
    assert soft_pool.soft_pool2d(torch.full((1, 1, 2, 2), 7.0), 2).item() == 7


def test_gradients_worked_out_by_hand() -> None:
    x = torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64, requires_grad=True)  # weights 1/4 and 3/4
    y = 0.75 * math.log(3)
    (exact,) = torch.autograd.grad(soft_pool.soft_pool1d(x, 2), x)
    torch.testing.assert_close(exact.flatten().tolist(), [0.25 * (1 - y), 0.75 * (1 + math.log(3) - y)])
    (paper,) = torch.autograd.grad(soft_pool.soft_pool1d(x, 2, gradient="paper"), x)
    torch.testing.assert_close(paper.flatten().tolist(), [0.25, 0.75])


@pytest.mark.parametrize("scale", [1.0, 80.0, 30000.0])
def test_finite_for_every_finite_input(scale: float) -> None:
    x = scale * torch.tensor([[-1.0, 1.0, 0.5, -0.5]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values = x.to(dtype).requires_grad_()
        y = soft_pool.soft_pool1d(values, 2)
        (gradient,) = torch.autograd.grad(y.sum(), values)
        assert y.isfinite().all()
        assert gradient.isfinite().all()
        torch.testing.assert_close(y.double(), by_the_book(x.to(dtype)[None].double(), 2)[0], rtol=1e-2, atol=0)


@pytest.mark.parametrize("gradient", soft_pool.GRADIENTS)
@pytest.mark.parametrize(
    ("window", "y", "flows"),
    [
        ([1.0, math.inf], math.inf, [0.0, 0.0]),
        ([math.inf, -math.inf], math.inf, [0.0, 0.0]),
        ([-math.inf, -math.inf], -math.inf, [0.0, 0.0]),
        ([2.0, -math.inf], 2.0, [1.0, 0.0]),
        ([2.0, math.nan], math.nan, [math.nan, math.nan]),
        ([math.inf, math.nan], math.nan, [math.nan, math.nan]),
    ],
)
def test_values_that_are_not_finite(window: list[float], y: float, flows: list[float], gradient: str) -> None:
    x = torch.tensor([[[*window, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    result = soft_pool.soft_pool1d(x, 2, gradient=gradient)
    torch.testing.assert_close(result.flatten().tolist(), [y, 0.0], equal_nan=True)
    (got,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(got.flatten().tolist(), [*flows, 0.5, 0.5], equal_nan=True)


def test_padding_takes_no_part() -> None:
    x = torch.full((1, 1, 4, 4), -3.0)
    assert torch.equal(soft_pool.soft_pool2d(x, 3, 1, 1), x)


def test_unbatched_and_tuples() -> None:
    x = torch.randn(2, 3, 6, 6)
    expected = soft_pool.soft_pool2d(x, 2)
    assert torch.equal(soft_pool.soft_pool2d(x, (2,), [2, 2]), expected)
    assert torch.equal(soft_pool.soft_pool2d(x[1], 2), expected[1])


def test_channels_last_stays() -> None:
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert soft_pool.soft_pool2d(x, 2).is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    assert soft_pool.soft_pool3d(x, 2).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("size", "out"), [((6, 9), (3, 3)), ((7, 5), (3, 2)), ((4, 4), (1, 1)), ((5, 6), (None, 4))])
def test_adaptive_windows_are_those_of_max_pooling(size: tuple[int, int], out: Any) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    got = soft_pool.adaptive_soft_pool(x, out)
    assert got.shape == F.adaptive_max_pool2d(x, out).shape
    h, w = (o or n for o, n in zip(out, size, strict=True))
    for i, j in itertools.product(range(h), range(w)):
        rows = slice(i * size[0] // h, -(-(i + 1) * size[0] // h))
        columns = slice(j * size[1] // w, -(-(j + 1) * size[1] // w))
        window = x[:, :, rows, columns]
        torch.testing.assert_close(got[:, :, i, j], (window * window.flatten(2).softmax(2).view_as(window)).sum((2, 3)))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_adaptive_windows_by_a_single_number(n: int) -> None:
    x = torch.randn(2, 3, *[5] * n)
    expected = soft_pool.adaptive_soft_pool(x, (2,) * n)
    for size in (2, numpy.int64(2), (numpy.int64(2),) * n):
        assert torch.equal(soft_pool.adaptive_soft_pool(x, size), expected)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        ((1, 1, 1, 1), ValueError, r"output_size must have 1 to 3 sizes, .* got \(1, 1, 1, 1\)"),
        ((), ValueError, r"output_size must have 1 to 3 sizes"),
        (None, TypeError, "output_size must be an integer or a sequence of them, got None"),
        (0, ValueError, r"output_size needs positive integers or None"),
        ((2,), ValueError, r"x must be \[B, C, L\] or \[C, L\], got \[2, 3, 5, 5\]"),
    ],
)
def test_bad_output_sizes_are_named(size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        soft_pool.adaptive_soft_pool(torch.randn(2, 3, 5, 5), size)


def test_operations() -> None:
    with FlopCounterMode(display=False) as counter:
        soft_pool.soft_pool2d(torch.randn(1, 2, 4, 4), 2)
    assert counter.get_total_flops() == 8 * 22


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size must be an integer of 1 or more, or 2 of them, got 0"),
        ({"kernel_size": 2.5}, TypeError, "kernel_size must be an integer or 2 of them, got 2.5"),
        ({"kernel_size": (2, 2, 2)}, ValueError, r"or 2 of them, got \(2, 2, 2\)"),
        ({"kernel_size": True}, TypeError, "kernel_size must be an integer.* got True"),
        ({"stride": 0}, ValueError, "stride must be an integer of 1 or more"),
        ({"stride": "2"}, TypeError, "stride must be an integer.* got '2'"),
        ({"padding": -1}, ValueError, "padding must be an integer of 0 or more"),
        ({"padding": 2}, ValueError, "padding may be at most half of the window.* got padding=2 for kernel_size=2"),
        ({"dilation": 0}, ValueError, "dilation must be an integer of 1 or more"),
        ({"kernel_size": 9}, ValueError, r"does not fit a map of \[4, 4\] with padding"),
        ({"gradient": "none"}, ValueError, "gradient must be one of 'exact', 'paper', got 'none'"),
        ({"x": torch.zeros(2, 4, 4, dtype=torch.int64)}, TypeError, "x must be a tensor of float16.*int64"),
        ({"x": [1.0]}, TypeError, "x must be a floating-point tensor, got list"),
        ({"x": torch.zeros(4, 4)}, ValueError, r"x must be \[B, C, H, W\] or \[C, H, W\], got \[4, 4\]"),
    ],
)
def test_bad_input_gets_a_sentence(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.randn(2, 2, 4, 4), "kernel_size": 2}
    with pytest.raises(error, match=message):
        soft_pool.soft_pool2d(**(arguments | change))
