import pytest
import torch

import downmix
from downmix.compat import SoftPool


@pytest.mark.parametrize("n", [1, 2, 3])
def test_published_names_and_defaults(n: int) -> None:
    x = torch.randn(2, 3, *[6] * n, requires_grad=True)
    expected = getattr(downmix, f"soft_pool{n}d")(x, 2, 2, gradient="paper")
    for got in (getattr(SoftPool, f"soft_pool{n}d")(x), getattr(SoftPool, f"SoftPool{n}d")()(x)):
        assert torch.equal(got, expected)
        assert torch.equal(
            torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(expected.sum(), x, retain_graph=True)[0]
        )
    assert getattr(SoftPool, f"SoftPool{n}d")(kernel_size=3, stride=1)(x).shape[2:] == (4,) * n


def test_force_inplace_is_ignored_with_a_note() -> None:
    x = torch.randn(1, 1, 4, 4)
    before = x.clone()
    with pytest.warns(UserWarning, match="force_inplace has no effect"):
        SoftPool.soft_pool2d(x, 2, None, True)
    with pytest.warns(UserWarning, match="force_inplace has no effect"):
        SoftPool.SoftPool2d(force_inplace=True)
    assert torch.equal(x, before)
