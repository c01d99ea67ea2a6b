import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from downmix import FBSConv2d, FBSSqueeze, fbs_penalty, linear_density, set_density
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


def network(**options: Any) -> nn.Sequential:
    first = FBSConv2d(3, 16, 3, padding=1, density=0.5, **options)
    return nn.Sequential(first, nn.ReLU(), FBSConv2d(16, 8, 3, density=0.5, **options), nn.ReLU())


@pytest.mark.parametrize("normalize", [False, True])
def test_penalty_by_hand(normalize: bool) -> None:
    model, x = network(normalize=normalize), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.saliency.linear.weight.zero_()
            layer.saliency.linear.bias.fill_(-1.0)
            layer.saliency.linear.bias[:3] = torch.tensor([1.0, 2.0, 3.0])
    model(x)
    penalty = fbs_penalty(model)
    assert penalty.item() == 2 * (1 + 2 + 3)  # a mean over images, a sum over channels and layers
    penalty.backward()
    assert model[0].saliency.linear.bias.grad.tolist() == [1.0] * 3 + [0.0] * 13


def test_the_penalty_of_two_halves_is_that_of_the_batch() -> None:
    # What DistributedDataParallel averages.
    model, x = network().double().eval(), torch.randn(4, 3, 6, 6).double()
    for layer in (model[0], model[2]):
        layer.saliency.train()
    values = []
    for part in (x, x[:2], x[2:]):
        model(part)
        values.append(fbs_penalty(model))
    torch.testing.assert_close(values[0], (values[1] + values[2]) / 2)


def test_the_penalty_takes_one_forward_pass_in_training() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    with pytest.raises(ValueError, match="0.saliency has not run since the last penalty"):
        fbs_penalty(model)
    model(x)
    fbs_penalty(model)
    for run in (lambda: None, lambda: model.eval()(x), lambda: torch.no_grad()(model.train())(x)):
        run()
        with pytest.raises(ValueError, match="call fbs_penalty once after each forward pass in training mode"):
            fbs_penalty(model)
    with pytest.raises(ValueError, match="Sequential has no FBS layer"):
        fbs_penalty(nn.Sequential(nn.ReLU()))


def test_the_penalty_keeps_nothing_alive_and_the_network_can_be_copied() -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    y = model(x)
    copy.deepcopy(model).load_state_dict(model.state_dict())
    g = weakref.ref(model[0].saliency._seen)
    loss = y.sum() + fbs_penalty(model)
    loss.backward()
    del loss, y
    gc.collect()
    assert g() is None


def test_the_penalty_survives_torch_compile() -> None:
    model = network()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 6, 6)
    model(x)
    expected = fbs_penalty(model).item()
    compiled(x)
    penalty = fbs_penalty(compiled)
    assert penalty.item() == pytest.approx(expected)
    penalty.backward()
    assert model[0].saliency.linear.bias.grad.abs().sum() > 0


def test_saliencies_start_from_a_truncated_normal() -> None:
    weight = ChannelSaliency(200, 200).linear.weight
    assert weight.abs().max() <= 0.1
    torch.testing.assert_close(weight.std().item(), 0.05 * 0.8796, atol=1e-3, rtol=0)  # cut off at 2 deviations


def test_density_can_be_lowered_while_training() -> None:
    model, x = network(), torch.randn(3, 3, 6, 6)
    for epoch, kept in enumerate((16, 12, 8, 4, 4)):
        set_density(model, linear_density(epoch, 3, 0.25))
        assert (model[0](x) != 0).any(3).any(2).sum(1).tolist() == [kept] * 3
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 1.5"):
        set_density(model, 1.5)
    with pytest.raises(ValueError, match="FBSSqueeze has no FBSConv2d"):
        set_density(FBSSqueeze(8, 2), 0.5)
    with pytest.raises(ValueError, match="epochs must be above 0, got 0"):
        linear_density(0, 0, 0.5)


@pytest.mark.parametrize("normalize", [False, True])
def test_trains_200_steps_at_half_density_without_nan(normalize: bool) -> None:
    features = network(normalize=normalize)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    labels = torch.arange(32) % 2
    losses = []
    for _ in range(200):
        x = torch.randn(32, 3, 6, 6)
        x[labels == 1, 0] += 1
        loss = nn.functional.cross_entropy(model(x), labels) + 1e-8 * fbs_penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert torch.isfinite(loss)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_zeros_have_finite_gradients() -> None:
    layer = ChannelSaliency(3, 8, normalize=True)
    nn.init.constant_(layer.linear.bias, -100)
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    layer(x).square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, *layer.parameters()))


def test_gradcheck_where_saliencies_are_equal() -> None:
    layer = FBSConv2d(4, 6, 3, density=0.5).double().eval()
    nn.init.zeros_(layer.saliency.linear.weight)  # every g is 1, whatever x: the first three stay
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert (layer(x) != 0).any(3).any(2).tolist() == [[True] * 3 + [False] * 3] * 2
