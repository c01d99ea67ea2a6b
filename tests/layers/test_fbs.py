import pytest
import torch
from torch import nn

from downmix import FBSConv2d, FBSSqueeze
from downmix.layers.fbs import ChannelSaliency, highest


def test_convolution_equals_its_equation() -> None:
    layer = FBSConv2d(3, 4, 3, stride=2, padding=1, density=0.5).double().eval()
    with torch.no_grad():
        layer.norm.running_mean.normal_()
        layer.norm.running_var.uniform_(0.5, 2)
        layer.bias.normal_()
        layer.saliency.linear.bias.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0]))
        layer.saliency.linear.weight.mul_(0.1)
    x = torch.randn(2, 3, 5, 5).double()
    y = nn.functional.conv2d(x, layer.conv.weight, stride=2, padding=1)
    y = (y - layer.norm.running_mean[:, None, None]) / (layer.norm.running_var[:, None, None] + layer.norm.eps).sqrt()
    g = (x.mean((2, 3)) @ layer.saliency.linear.weight.T + layer.saliency.linear.bias).relu()
    expected = torch.zeros_like(y)
    for channel in (1, 3):  # the two highest, by their biases
        expected[:, channel] = g[:, channel, None, None] * y[:, channel] + layer.bias[channel]
    torch.testing.assert_close(layer(x), expected)


def test_squeeze_by_hand() -> None:
    layer = FBSSqueeze(4, 2)
    nn.init.zeros_(layer.saliency.linear.weight)
    with torch.no_grad():
        layer.saliency.linear.bias.copy_(torch.tensor([3.0, -1.0, 2.0, 5.0]))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    assert layer(x).flatten().tolist() == [3.0, 20.0]  # channels 0 and 3, in their own order


def test_squeeze_chooses_for_each_image() -> None:
    layer = FBSSqueeze(2, 2)
    with torch.no_grad():
        layer.saliency.linear.weight.copy_(torch.eye(2))
    x = torch.tensor([[4.0, 1.0], [1.0, 6.0]]).reshape(2, 2, 1, 1)
    assert layer(x).flatten().tolist() == [4 * 5, 6 * 7]


def test_of_equal_values_the_first_are_kept() -> None:
    assert highest(torch.zeros(2, 100), 3).tolist() == [[0, 1, 2]] * 2
    assert highest(torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]]), 2).tolist() == [[1, 2]]


@pytest.mark.parametrize(("density", "kept"), [(1.0, 100), (0.55, 55), (0.541, 55), (0.001, 1)])
def test_exactly_ceil_of_density_times_channels_pass(density: float, kept: int) -> None:
    y = FBSConv2d(3, 100, 1, density=density)(torch.randn(4, 3, 6, 6))
    assert (y != 0).any(3).any(2).sum(1).tolist() == [kept] * 4


def test_no_gradient_flows_to_what_was_switched_off() -> None:
    layer = FBSConv2d(3, 8, 3, density=0.5)
    x = torch.randn(1, 3, 5, 5)
    layer(x).square().sum().backward()
    kept = highest(layer.saliency(x), 4)[0]
    for parameter in (layer.conv.weight, layer.bias, layer.saliency.linear.bias):
        rows = parameter.grad.flatten(1).abs().sum(1) if parameter.dim() > 1 else parameter.grad.abs()
        assert (rows > 0).nonzero().flatten().tolist() == kept.tolist()


def test_gradcheck() -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FBSSqueeze(4, 2).double(), x)
    assert torch.autograd.gradcheck(FBSConv2d(4, 6, 3, padding=1, normalize=True).double(), x)


def test_normalized_saliency_has_a_mean_of_one_and_survives_zeros() -> None:
    layer, x = ChannelSaliency(3, 8, normalize=True), torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(layer(x).mean(1), torch.ones(4))
    nn.init.constant_(layer.linear.bias, -100)
    assert layer(x).abs().sum() == 0


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        FBSConv2d(3, 8, 3, density=0)
    with pytest.raises(ValueError, match="reduction must divide in_channels, got 3 and 8"):
        FBSSqueeze(8, 3)
