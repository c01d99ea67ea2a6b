import pytest
import torch
from torch import nn

import downmix
from downmix import PiX


def test_equals_its_equation() -> None:
    layer, x = PiX(8, 4, bias=True).double(), torch.randn(2, 8, 3, 5).double()
    nn.init.normal_(layer.bias)
    logits = x.mean((2, 3)) @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(layer(x), downmix.pick_or_mix(x, 1 / (1 + torch.exp(-logits)), 4))


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "tanh"},
        {"norm": True},
        {"bias": True},
        {"operator": "max"},
        {"operator": "avg"},
        {"operator": "min"},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"fusion": "weighted"},
    ],
)
def test_every_variant_differs_from_the_default_and_trains(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    default = PiX(16, 4)
    variant = PiX(16, 4, **options)
    with torch.no_grad():
        variant.weight.copy_(default.weight)
        if variant.bias is not None:
            variant.bias.fill_(1)
    x = torch.randn(4, 16, 5, 5)
    y = variant(x)
    assert not torch.allclose(y, default(x))
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in variant.parameters())


def test_tanh_gate_is_shifted_into_0_to_1() -> None:
    layer, x = PiX(8, 2, gate="tanh"), torch.randn(2, 8, 3, 3)
    logits = x.mean((2, 3)) @ layer.weight.flatten(1).T
    torch.testing.assert_close(layer.probabilities(x), 0.5 * (1 + logits.tanh()))


def test_norm_stands_between_the_linear_map_and_the_gate() -> None:
    layer, x = PiX(8, 2, norm=True), torch.randn(16, 8, 3, 3)
    torch.testing.assert_close(layer.probabilities(x).logit().mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_an_all_zero_map_mixes() -> None:
    """p is 0.5 exactly there, and p < t picks: what the published weights were trained with."""
    assert PiX(8, 4).probabilities(torch.zeros(1, 8, 2, 2)).unique().item() == 0.5


def test_takes_over_a_convolution_s_weight_under_its_name() -> None:
    layer, squeeze = PiX(16, 4), nn.Conv2d(16, 4, 1, bias=False)
    layer.load_state_dict(squeeze.state_dict())
    assert torch.equal(layer.weight, squeeze.weight)


def test_unbatched() -> None:
    layer, x = PiX(8, 4), torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(layer(x[1]), layer(x)[1])


def test_channels_that_do_not_divide() -> None:
    assert PiX(10, 4)(torch.randn(1, 10, 2, 2)).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    assert PiX(8, 4).to(dtype)(torch.randn(1, 8, 2, 2, dtype=dtype)).dtype == dtype


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="gate must be one of 'sigmoid', 'tanh', got 'relu'"):
        PiX(8, 4, gate="relu")
    with pytest.raises(ValueError, match=r"reduction must be a positive integer.* got 3.6"):
        PiX(8, 3.6)


def test_repr_says_what_is_not_default() -> None:
    assert repr(PiX(8, 4, fusion="weighted")) == "PiX(8, 2, reduction=4, fusion=weighted, bias=False)"
