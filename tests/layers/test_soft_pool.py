import pytest
import torch
from torch import nn

import downmix


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_steep_window_is_its_maximum(n: int) -> None:
    x = 1e6 * torch.randn(2, 3, *[9] * n)
    ours, theirs = getattr(downmix, f"SoftPool{n}d"), getattr(nn, f"MaxPool{n}d")
    torch.testing.assert_close(ours(3, 2, 1)(x), theirs(3, 2, 1)(x))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 4, None])
def test_adaptive_windows_are_those_of_adaptive_max_pool(n: int, size: int | None) -> None:
    x = torch.randn(2, 3, *(9, 6, 7)[:n])
    ours = getattr(downmix, f"AdaptiveSoftPool{n}d")(size)
    theirs = nn.Identity() if size is None else getattr(nn, f"AdaptiveMaxPool{n}d")(size)
    torch.testing.assert_close(ours(1e6 * x), theirs(1e6 * x))
    torch.testing.assert_close(ours(x[1]), ours(x)[1])


def test_adaptive_gradient() -> None:
    x = torch.randn(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(downmix.AdaptiveSoftPool2d((3, 2)), x)


def test_global_pooling_exports_with_any_size() -> None:
    pool, any_size = downmix.AdaptiveSoftPool2d(1), {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(pool, (torch.randn(2, 3, 4, 6),), dynamic_shapes=(any_size,))
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(exported.module()(x), pool(x))


def test_a_dimension_that_is_kept_exports_with_any_size() -> None:
    pool, any_height = downmix.AdaptiveSoftPool2d((None, 3)), {2: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(pool, (torch.randn(2, 3, 4, 8),), dynamic_shapes=(any_height,))
    x = torch.randn(2, 3, 7, 8)
    torch.testing.assert_close(exported.module()(x), pool(x))


@pytest.mark.filterwarnings("ignore:.torch.jit")  # that it is deprecated
def test_global_pooling_is_traced_for_one_size_with_a_warning() -> None:
    pool, x = downmix.AdaptiveSoftPool2d(1), torch.randn(2, 3, 4, 6)
    with pytest.warns(torch.jit.TracerWarning, match="might cause the trace to be incorrect"):
        traced = torch.jit.trace(pool, torch.randn(2, 3, 4, 6))
    torch.testing.assert_close(traced(x), pool(x))


def test_paper_gradient_takes_the_weights_as_constants() -> None:
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    downmix.SoftPool2d(2, gradient="paper")(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), x.detach().flatten().softmax(0))


def test_bad_arguments_get_a_sentence() -> None:
    for module in (downmix.SoftPool2d, downmix.AdaptiveSoftPool2d):
        with pytest.raises(ValueError, match="SoftPool2d has no indices to return.*nn.MaxPool"):
            module(2, return_indices=True)
        with pytest.raises(ValueError, match="gradient must be one of 'exact', 'paper', got 'true'"):
            module(2, gradient="true")
    with pytest.raises(ValueError, match="output_size must be a number or 2 of them"):
        downmix.AdaptiveSoftPool2d((1, 2, 3))
    with pytest.raises(ValueError, match="output_size needs positive integers or None"):
        downmix.AdaptiveSoftPool2d(0)(torch.randn(1, 1, 4, 4))
