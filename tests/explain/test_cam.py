"""Class activation maps are the library's, of the right layer, and leave no trace."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from downmix.explain import METHODS, attend, last_map

from .test_probabilities import assert_untouched, snapshot


def small() -> nn.Module:
    """A map of the images' size, a mean and a linear layer: GradCAM's weights are the linear layer's."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def test_gradcam_by_hand() -> None:
    model, images = small(), torch.rand(2, 3, 5, 7)
    found = attend(model, images, target=2)
    assert (found.layer, found.targets.tolist()) == ("1", [2, 2])
    with torch.no_grad():
        maps = (model[1](model[0](images)) * model[4].weight[2][:, None, None]).sum(1).relu()
        torch.testing.assert_close(found.scores, model(images).softmax(1))
    maps -= maps.amin((1, 2), keepdim=True)
    torch.testing.assert_close(found.maps, maps / maps.amax((1, 2), keepdim=True), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_map(mode: Callable[[], Any]) -> None:
    model, images = small(), torch.rand(2, 3, 5, 7)
    with mode():
        found = attend(model, images.clone())
    torch.testing.assert_close(found.maps, attend(model, images).maps)


def test_what_the_network_does_in_place_does_not_change_the_map() -> None:
    model, images = small(), torch.rand(1, 3, 5, 7) - 0.5
    inplace = attend(model, images, layer="0", target=0).maps
    model[1].inplace = False
    torch.testing.assert_close(attend(model, images, layer="0", target=0).maps, inplace)


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method: str) -> None:
    found = attend(small(), torch.rand(2, 3, 6, 4), method=method)
    assert found.maps.shape == (2, 6, 4)
    assert 0 <= found.maps.min() <= found.maps.max() <= 1


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_pix_resnet", "layer4"),
        ("test_pix_vgg", "features"),
        ("test_pix_mobilenetv2", "bn2"),
        ("densenet121", "features"),
        ("softpool_resnet18", "layer4"),
    ],
)
def test_the_layer_of_each_family(name: str, layer: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        assert last_map(model, torch.empty(1, 3, 64, 64)) == layer


def test_no_trace_of_it_stays() -> None:
    model = small()
    model(torch.rand(1, 3, 2, 2)).sum().backward()
    before = snapshot(model)
    attend(model, torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="no layer 'nine'"):
        attend(model, torch.rand(2, 3, 4, 4), layer="nine")
    assert_untouched(before, model)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_compiled_networks() -> None:
    model, images = small(), torch.rand(1, 3, 4, 4)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(attend(compiled, images).maps, attend(model, images).maps)  # type: ignore[arg-type]
    expected = attend(model, images, layer="0", target=1).maps
    model[0] = torch.compile(model[0], backend="eager")
    model(images)
    assert torch.equal(attend(model, images, layer="0", target=1).maps, expected)


def test_bad_input_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = timm.create_model("test_pix_resnet"), torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="no layer 'layer4.0.con1'; near it are layer4.0.conv"):
        attend(model, images, layer="layer4.0.con1")
    with pytest.raises(ValueError, match="method must be .*gradcam"):
        attend(model, images, method="magic")
    with pytest.raises(ValueError, match="target must be a class from 0 to 999, got 1000"):
        attend(model, images, target=1000)
    with pytest.raises(ValueError, match=r"a classifier's outputs of shape \[B, classes\], got \[1, 4, 64, 64\]"):
        attend(small()[:2], images)
    with pytest.raises(ValueError, match=r"a classifier's outputs of shape \[B, classes\], got tuple"):
        attend(nn.Sequential(small()[0], Pair()), images)
    with pytest.raises(ValueError, match=r"a classifier's outputs of shape \[B, classes\], got \[1, 3, 64, 64\]"):
        attend(nn.Sequential(nn.ReLU()), images)
    with pytest.raises(ValueError, match=r"'fc' must give a map of shape \[B, C, H, W\], got \[1, 1000\]; choose"):
        attend(model, images, layer="fc")
    for none in (images[:0], images[0]):
        with pytest.raises(ValueError, match=r"images must be a batch of one or more, of shape \[B, 3, H, W\], got"):
            attend(model, none)
    with pytest.raises(TypeError, match="model must be an nn.Module, got str"):
        attend("resnet50", images)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no layer gives a map of more than one pixel"):
        last_map(small(), torch.rand(1, 3, 1, 1))
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match=r"needs more packages .*: pip install 'downmix\[explain\]'"):
        attend(model, images)
