"""One pass gives what adding, rectifying and taking means give, in each layout and dtype, and only where it may."""

import math

import pytest
import torch

import downmix
from downmix.kernels.numba import add_relu_mean
from downmix.ops.add_relu_mean import _reference, add_relu_mean_, whole

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def runs_kernel(*tensors: torch.Tensor) -> bool:
    return "kernels.numba" in downmix.explain_backend(add_relu_mean_.run, *(tensor.clone() for tensor in tensors))


def check(x: torch.Tensor, shortcut: torch.Tensor) -> None:
    """The map is what adding and rectifying give, the means are as exact as theirs, and the shortcut is left alone."""
    before = shortcut.clone()
    own, ours, truth = x.clone(), x.clone(), x.double()
    mean = whole(add_relu_mean_.run(ours, shortcut), x.dtype)
    means = mean, _reference(own, shortcut), _reference(truth, shortcut.double())
    assert torch.equal(shortcut, before)
    # One sum and one rounding each.
    torch.testing.assert_close(ours, own, rtol=0, atol=0, equal_nan=True)
    assert means[0].dtype == x.dtype
    got, reference, exact = (mean.double() for mean in means)
    finite = exact.isfinite()
    torch.testing.assert_close(got[~finite], exact[~finite], rtol=0, atol=0, equal_nan=True)
    got, reference, exact = got[finite], reference[finite], exact[finite]
    allowed = 2 * (reference - exact).abs().max() + torch.finfo(x.dtype).eps * exact.abs().max()
    assert (got - exact).abs().max() <= allowed


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_as_exact_as_the_reference(layout: str, dtype: torch.dtype) -> None:
    for shape in ((2, 21, 37, 31), (3, 64, 8, 8), (1, 5, 1, 3)):
        x, shortcut = (torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2))
        assert runs_kernel(x, shortcut)
        check(x, shortcut)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_stays_and_an_infinity_too(layout: str) -> None:
    x = torch.zeros(1, 32, 4, 5).contiguous(memory_format=LAYOUTS[layout])
    x[0, 3, 1, 2], x[0, 4, 1, 2], x[0, 5, 1, 2] = math.nan, math.inf, -math.inf
    mean = add_relu_mean_.run(x, torch.zeros_like(x))[0]
    assert x[0, 3].isnan().sum() == mean.isnan().sum() == 1
    assert mean[4] == x[0, 4, 1, 2] == math.inf
    assert mean[5] == 0
    assert mean[3].isnan()


def test_what_the_kernel_does_not_take() -> None:
    x = torch.randn(2, 6, 4, 4)
    assert not runs_kernel(x, torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last))
    assert not runs_kernel(x, torch.randn(2, 6, 1, 1))
    assert not runs_kernel(x, torch.randn(2, 6, 4, 4).double())
    assert not runs_kernel(x.to("meta"), x.to("meta"))
    assert add_relu_mean.why_not(x, x.to("meta")) == (
        "the CPU kernel takes two maps that lie in the CPU's memory, got one on meta"
    )
    assert add_relu_mean_.run(x[:0], x[:0]).shape == (0, 6)


def test_small_maps_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 6, 4, 4)
    monkeypatch.setattr(add_relu_mean, "FEW", x.numel() + 1)
    assert not runs_kernel(x, x)
    monkeypatch.setattr(add_relu_mean, "FEW", x.numel())
    assert runs_kernel(x, x)
