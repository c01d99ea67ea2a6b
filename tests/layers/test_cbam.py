from typing import Any

import pytest
import timm
import torch
from timm.layers.cbam import CbamModule, LightCbamModule
from torch import Tensor, nn

import downmix
from downmix import CBAM, translate_cbam


def randomized(layer: Any) -> Any:
    """Every parameter and statistic different from where it starts, and no gate near 0 or 1."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.2).add_(1 if "var" in name else 0)
    return layer.eval()


class Published(nn.Module):
    """The names and the function of Jongchan/attention-module, written down from its description."""

    def __init__(self, channels: int):
        super().__init__()
        width = channels // 16
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels))
        conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.ChannelGate = nn.ModuleDict({"mlp": mlp})
        self.SpatialGate = nn.ModuleDict({"spatial": nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(1)})})

    def forward(self, x: Tensor) -> Tensor:
        mlp: Any = self.ChannelGate["mlp"]
        spatial: Any = self.SpatialGate["spatial"]
        x = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
        return x * torch.sigmoid(spatial["bn"](spatial["conv"](torch.stack([x.amax(1), x.mean(1)], 1))))


def test_by_hand() -> None:
    layer = CBAM(2, reduction=2).eval()
    with torch.no_grad():
        layer.fc1.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.fc1.bias.fill_(1)
        layer.fc2.weight.copy_(torch.tensor([[1.0], [2.0]]))
        layer.fc2.bias.copy_(torch.tensor([0.0, -1.0]))
        nn.init.zeros_(layer.spatial.weight)
        layer.spatial.weight[0, :, 3, 3] = torch.tensor([1.0, 10.0])  # [max, mean], at the pixel alone
        layer.norm.eps = 1e-12  # vanishes beside 1; torch 2.11 takes no 0
    x = torch.tensor([[1.0, 3.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    # Means 2 and 1 give relu(2 − 1 + 1) = 2, maxima 3 and 2 give relu(3 − 2 + 1) = 2: 2 + 2 and 3 + 3 in sum.
    y = x * torch.tensor([4.0, 6.0]).sigmoid().reshape(1, 2, 1, 1)
    expected = y * (y.amax(1) + 10 * y.mean(1)).sigmoid()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_timm_s_weights_move_both_ways(bias: bool) -> None:
    theirs, ours = randomized(CbamModule(32, mlp_bias=bias)), CBAM(32).eval()
    x = torch.randn(2, 32, 9, 8)
    ours.load_state_dict(translate_cbam(theirs.state_dict()))
    torch.testing.assert_close(ours(x), theirs(x))
    back = randomized(CbamModule(32, mlp_bias=True))
    back.load_state_dict(translate_cbam(ours.state_dict(), "timm"))
    torch.testing.assert_close(back(x), theirs(x))


def test_published_weights_move_both_ways() -> None:
    theirs, ours = randomized(Published(32)), CBAM(32).eval()
    x = torch.randn(2, 32, 9, 8)
    ours.load_state_dict(translate_cbam(theirs.state_dict()))
    torch.testing.assert_close(ours(x), theirs(x))
    assert translate_cbam(ours.state_dict(), "published").keys() == theirs.state_dict().keys()
    timm_s = CbamModule(32, mlp_bias=True).eval()
    timm_s.load_state_dict(translate_cbam(theirs.state_dict(), "timm"))
    torch.testing.assert_close(timm_s(x), theirs(x))


def test_all_cbams_of_a_network_and_nothing_else() -> None:
    network = timm.create_model("test_resnet", block_args={"attn_layer": "cbam"})
    state = network.state_dict()
    translated = translate_cbam(state, "published")
    count = sum(isinstance(module, CbamModule) for module in network.modules())
    assert sum("SpatialGate.spatial.conv.weight" in name for name in translated) == count > 1
    assert "layer1.0.se.ChannelGate.mlp.1.bias" in translated
    back = translate_cbam(translated, "timm")
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert set(back) - set(state) == {name for name in back if ".channel.fc" in name and name.endswith("bias")}


def test_what_is_another_function_is_refused() -> None:
    with pytest.raises(ValueError, match="at '' reads 1 map, not maximum and mean: timm's LightCbamModule"):
        translate_cbam(LightCbamModule(32).state_dict())
    state = CBAM(32).state_dict()
    with pytest.raises(ValueError, match="lacks what norm.running_mean, norm.running_var"):
        translate_cbam({name: tensor for name, tensor in state.items() if "running" not in name})
    with pytest.raises(ValueError, match="there is no CBAM in this state dict"):
        translate_cbam(nn.Conv2d(3, 3, 1).state_dict())
    with pytest.raises(ValueError, match="to must be one of 'downmix', 'published', 'timm', got 'keras'"):
        translate_cbam(state, "keras")
    with pytest.raises(ValueError, match="reduction must be at most in_channels, got 16 for 8 channels"):
        CBAM(8)


@pytest.mark.parametrize("kind", [CBAM, downmix.SqueezeExcite])
def test_gradcheck_and_layouts(kind: Any) -> None:
    layer = randomized(kind(4, 2).double())
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    last = layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), layer(x))
    zeros = torch.zeros(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    layer(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_of_equal_values_one_gets_the_gradient_of_the_maximum() -> None:
    layer = CBAM(2, reduction=1).double().eval()
    for parameter in (layer.fc1.weight, layer.fc2.weight, layer.spatial.weight):
        nn.init.constant_(parameter, 0.0 if parameter is layer.spatial.weight else 0.1)
    x = torch.ones(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    # All pixels are equal but for the one that each channel's maximum came from.
    assert [len(channel.unique()) for channel in x.grad[0]] == [2, 2]
    assert [(channel != channel[1, 1]).sum().item() for channel in x.grad[0]] == [1, 1]


def test_squeeze_excite_is_timm_s() -> None:
    theirs = randomized(timm.layers.SEModule(32, rd_divisor=1))
    ours = downmix.SqueezeExcite(32)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(ValueError, match="reduction must be a positive integer, got 0"):
        downmix.SqueezeExcite(32, 0)
