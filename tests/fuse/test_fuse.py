"""Fused copies compute what the network does, in which layers report and outputs agree; the network stays as it was."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import downmix
from downmix.fuse import Step, fold_batch_norms
from tests.models.test_models import narrow

from .helpers import IMAGES, NO_SUM, check, settled


@pytest.mark.parametrize(
    ("name", "layer"),
    [("pix_resnet50", "conv1"), ("pix_resnet18_prune4", "conv1.pix"), ("pix_resnet50_down4", "")],
)
def test_networks_of_ours(name: str, layer: str) -> None:
    _, report = check(settled(narrow(name, num_classes=5)))
    assert report.norms
    assert not any(step.why_not for step in report.norms)
    joined = [f"layer{stage}.0.{layer}" for stage in (2, 3, 4)] if layer else []
    assert [step.name for step in report.means if not step.why_not] == joined
    assert {step.why_not for step in report.means} - {""} == {NO_SUM}


def test_a_converted_network_whose_relu_is_shared() -> None:
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], num_classes=5)
    network, _ = downmix.convert(network, example_input=torch.zeros(1, 3, 64, 64))
    _, report = check(settled(network))
    assert report.means == [Step(f"layer{block}.conv1") for block in ("1.1", "2.0", "3.0", "4.0")]
    assert "4 of 4 PiX layers add and rectify what they read" in report.summary
    for words in (
        "is folded into the convolution before it",
        "pick_or_mix runs downmix.kernels.numba.pix_sample",
    ):
        assert words in str(report)


def test_half_precision_and_a_network_without_pix() -> None:
    network = settled(timm.create_model("test_resnet", num_classes=5)).bfloat16()
    images = torch.randn(IMAGES).bfloat16()
    fused, report = downmix.fuse(network, example_input=images)
    assert type(fused) is type(network)
    assert report.means == []
    torch.testing.assert_close(fused(images), network(images), rtol=0.1, atol=0.1)
    assert not fused(images).requires_grad


class Viewed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), -1)


def test_a_forward_that_views_its_maps_keeps_its_layout() -> None:
    network, images = settled(Viewed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())), torch.randn(IMAGES)
    fused, report = downmix.fuse(network, example_input=images)
    torch.testing.assert_close(fused(images), network(images).detach())
    assert report.weights.why_not.startswith("stay as they were, as the forward can't run in channels_last: view size")
    assert report.summary == "Viewed: 1 of 1 BatchNorms folded, weights as they were"
    assert "can't run in channels_last" in str(report)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_over_one_two_and_three_dimensions(dims: int) -> None:
    conv, norm = getattr(nn, f"Conv{dims}d")(3, 8, 3), getattr(nn, f"BatchNorm{dims}d")(8)
    network, images = nn.Sequential(conv, norm, nn.ReLU()).eval(), torch.randn(2, 3, *[8] * dims)
    fused, report = downmix.fuse(network, example_input=images)
    assert report.norms == [Step("1")]
    torch.testing.assert_close(fused(images), network(images).detach())
    assert (dims == 2) == (not fused[0].weight.is_contiguous())


def test_what_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) before"):
        downmix.fuse(network)
    training = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    training[1].train()
    for fuses in (downmix.fuse, lambda network: fold_batch_norms(network, torch.randn(IMAGES))):
        with pytest.raises(
            ValueError, match=r"no norm in training mode, but 1 \(BatchNorm2d\) is; call eval\(\) before"
        ):
            fuses(training)
    assert not training[1].running_mean.any()
    with pytest.raises(ValueError, match=r"Sequential can't run on \[1, 2, 8, 8\]; pass another example_input"):
        downmix.fuse(network.eval(), example_input=torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="but some are on the meta device; load them before"):
        downmix.fuse(nn.Sequential(nn.Conv2d(3, 4, 1, device="meta")).eval())
    with pytest.raises(TypeError, match="must be one batch of images, a tensor, got list; .* such as its backbone"):
        downmix.fuse(network, example_input=[torch.zeros(3, 8, 8)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fuse it first, compile it afterwards"):
        downmix.fuse(torch.compile(network))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got str"):
        downmix.fuse("resnet50")  # type: ignore[arg-type]
