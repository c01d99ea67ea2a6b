from typing import Any

import pytest
import timm
import torch
from torch import nn

from downmix import SoftPool2d

BASELINES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "densenet121",
    "densenet161",
    "densenet169",
    "inception_v3",
)
SIZE = 96


def create(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **options).eval()


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_stem_s_max_pools_change(name: str) -> None:
    plain, soft = create(name), create(f"softpool_{name}")
    old = dict(plain.named_modules())
    changed = {key: module for key, module in soft.named_modules() if type(module) is not type(old[key])}
    assert len(changed) == (2 if name == "inception_v3" else 1)
    for key, pool in changed.items():
        assert isinstance(pool, SoftPool2d)
        assert isinstance(old[key], nn.MaxPool2d)
        assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 0 if name == "inception_v3" else 1)
    assert {key: value.shape for key, value in soft.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }


@pytest.mark.parametrize("name", BASELINES)
def test_what_timm_s_users_expect(name: str) -> None:
    x = torch.randn(2, 1, SIZE, SIZE, device="meta")
    model = create(f"softpool_{name}", num_classes=7, in_chans=1, drop_rate=0.5, global_pool="max")
    assert model(x).shape == (2, 7)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", BASELINES)
def test_features_only(name: str) -> None:
    x = torch.randn(1, 3, SIZE, SIZE, device="meta")
    plain, soft = create(name, features_only=True), create(f"softpool_{name}", features_only=True)
    assert any(isinstance(module, SoftPool2d) for module in soft.modules())
    assert not any(isinstance(module, nn.MaxPool2d) for module in soft.modules())
    assert soft.feature_info.channels() == plain.feature_info.channels()
    assert [f.shape for f in soft(x)] == [f.shape for f in plain(x)]


def test_output_stride() -> None:
    soft = create("softpool_resnet18", features_only=True, output_stride=8)
    assert [f.shape[-1] for f in soft(torch.randn(1, 3, 64, 64, device="meta"))] == [32, 16, 8, 8, 8]


def test_the_source_s_windows() -> None:
    model = create("softpool_resnet18", pool="soft_2x2")
    assert (model.maxpool.kernel_size, model.maxpool.stride) == (2, 2)
    for size in (64, 90):  # the second stem's map is 45×45
        x = torch.randn(1, 3, size, size, device="meta")
        plain = create("resnet18")
        assert model.forward_features(x).shape == plain.forward_features(x).shape


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="pool must be one of 'max', .*'soft_2x2', .*got 'hard'"):
        create("softpool_resnet18", pool="hard")


def test_values_are_soft_pool_s() -> None:
    model = timm.create_model("softpool_resnet18", num_classes=3).eval()
    plain = timm.create_model("resnet18", num_classes=3).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(model(x), plain(x))
    plain.maxpool = SoftPool2d(3, stride=2, padding=1)
    torch.testing.assert_close(model(x), plain(x))


def test_the_source_s_windows_in_inception() -> None:
    model = create("softpool_inception_v3", pool="soft_2x2")
    assert (model.Pool1.kernel_size, model.Pool2.kernel_size) == (2, 2)
    x = torch.randn(1, 3, 299, 299, device="meta")
    assert model.forward_features(x).shape == create("inception_v3").forward_features(x).shape
