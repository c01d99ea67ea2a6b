import pytest
import torch

import downmix
from downmix.layers.squeeze import SQUEEZES


@pytest.mark.parametrize("name", SQUEEZES)
def test_every_squeeze_gives_a_quarter_of_the_channels_in_both_layouts(name: str) -> None:
    layer = downmix.create_squeeze(name, 16, 4, dtype=torch.float64, device="cpu").eval()
    x = torch.randn(2, 16, 5, 3).double()
    y = layer(x)
    assert y.shape == (2, 4, 5, 3)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y)


@pytest.mark.parametrize("name", SQUEEZES)
def test_every_parameter_of_a_squeeze_gets_a_gradient(name: str) -> None:
    layer = downmix.create_squeeze(name, 16, 4)
    x = torch.randn(4, 16, 5, 3, requires_grad=True)
    (layer(x) * torch.randn(4, 4, 5, 3)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in [x, *layer.parameters()])


@pytest.mark.parametrize("name", SQUEEZES)
def test_gradcheck(name: str) -> None:
    layer = downmix.create_squeeze(name, 8, 2, dtype=torch.float64)
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.eval(), x)


def test_grouped_squeeze_by_hand() -> None:
    layer = downmix.create_squeeze("group", 8, 2, groups=2).eval()
    torch.nn.init.ones_(layer.conv.weight)
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    first, second = 0 + 1 + 2 + 3, 4 + 5 + 6 + 7  # each twice, and shuffled
    torch.testing.assert_close(
        layer(x).flatten(), torch.tensor([first, second, first, second]).float(), rtol=1e-4, atol=0
    )


def test_plain_squeeze_is_convolution_norm_and_relu() -> None:
    layer, x = downmix.create_squeeze("conv", 8, 4).eval(), torch.randn(1, 8, 2, 2)
    expected = (
        (x.flatten(2).transpose(1, 2) @ layer.conv.weight.flatten(1).T).transpose(1, 2).relu().reshape(1, 2, 2, 2)
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="squeeze must be one of 'pix', 'dwp', 'fbs', 'group', 'conv', got 'piks'"):
        downmix.create_squeeze("piks", 8, 4)


def test_options_go_to_the_class_and_unknown_ones_are_refused() -> None:
    assert downmix.create_squeeze("dwp", 8, 4, mode="mean").mode == "mean"
    assert downmix.create_squeeze("pix", 8, 4, fusion="weighted").fusion == "weighted"
    for name in SQUEEZES:
        with pytest.raises(TypeError, match="treshold"):
            downmix.create_squeeze(name, 8, 4, treshold=0.5)


def test_numbers_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="a squeeze of 10 channels by 4 in 1 groups does not come out even"):
        downmix.create_squeeze("conv", 10, 4)
    with pytest.raises(ValueError, match="a squeeze of 12 channels by 2 in 4 groups does not come out even"):
        downmix.create_squeeze("group", 12, 2)
    with pytest.raises(ValueError, match="groups must be a positive integer, got 0"):
        downmix.create_squeeze("group", 12, 2, groups=0)
    for name in ("pix", "dwp", "fbs", "group", "conv"):
        with pytest.raises(ValueError, match="reduction must be a positive integer"):
            downmix.create_squeeze(name, 8, 0)
