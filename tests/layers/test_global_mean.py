import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from downmix import CBAM, PiX, SqueezeExcite
from downmix.layers._global_mean import global_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_the_mean_and_its_gradient_a_view(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    seen: list[Tensor] = []
    inner = x * 1
    inner.register_hook(seen.append)
    means = global_mean(inner)
    torch.testing.assert_close(means, x.mean((2, 3)))
    grad = torch.randn_like(means)
    (got,), (expected,) = (torch.autograd.grad(y, x, grad) for y in (means, x.mean((2, 3))))
    torch.testing.assert_close(got, expected)
    assert (seen[0].dtype, seen[0].stride()[2:]) == (dtype, (0, 0))


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own forward derivatives use it
def test_derivatives_of_all_kinds() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(global_mean, x, check_batched_grad=True)
    assert gradgradcheck(global_mean, x)
    expected = torch.full_like(x, 1 / 20)
    torch.testing.assert_close(torch.func.grad(lambda x: global_mean(x).sum())(x), expected)
    torch.testing.assert_close(torch.func.vmap(lambda x: global_mean(x[None]))(x)[:, 0], x.mean((2, 3)))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        assert forward_ad.unpack_dual(global_mean(dual)).tangent.unique().tolist() == [1.0]


@pytest.mark.parametrize("layer", [PiX(8, 4), SqueezeExcite(8, 2), CBAM(8, 2)], ids=lambda layer: type(layer).__name__)
def test_layers_learn_the_same_by_torchs_own_mean(layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    ours = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    monkeypatch.setattr("downmix.layers._global_mean._GlobalMean.apply", lambda x: x.mean((2, 3)))
    for got, expected in zip(ours, torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layer", [SqueezeExcite(8, 2), CBAM(8, 2)], ids=lambda layer: type(layer).__name__)
def test_torch_fx_still_traces_layers_of_torchs_own_operators(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))
