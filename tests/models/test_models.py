from typing import Any

import pytest
import timm
import torch
from torch import nn

import downmix
from downmix.tools._networks import registered

SMALL = ("resnet29_small", "pix_resnet29_small")
LARGE = ("pix_resnet50", "pix_resnet101", "pix_resnet152")


def create(name: str, **options: Any) -> Any:
    return timm.create_model(name, **options)


def test_all_names_are_registered() -> None:
    assert set(registered()) == {*SMALL, *LARGE}


@pytest.mark.parametrize("name", [*SMALL, "pix_resnet50"])
def test_forward_and_a_gradient_for_every_parameter(name: str) -> None:
    model = create(name, zero_init_last=False).train()
    size = min(64, model.default_cfg["input_size"][-1])
    output = model(torch.randn(2, 3, size, size))
    assert output.shape == (2, model.num_classes)
    output.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_what_timm_s_users_expect(name: str) -> None:
    with torch.device("meta"):
        model = create(name, num_classes=7, in_chans=1, drop_rate=0.5, global_pool="max").eval()
        x = torch.randn(2, 1, 64, 64)
        assert model(x).shape == (2, 7)
        assert model.drop_rate == 0.5
        assert model.global_pool.pool_type == "max"
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        assert len(model.forward_intermediates(x, intermediates_only=True)) == 5


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_features_only(name: str, output_stride: int) -> None:
    if name in SMALL and output_stride == 8:
        pytest.skip("the small stem does not stride")
    with torch.device("meta"):
        model = create(name, features_only=True, output_stride=output_stride).eval()
        features = model(torch.randn(1, 3, 64, 64))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert [f.shape[1] for f in features] == channels
    assert [64 // f.shape[2] for f in features] == reductions


@pytest.mark.parametrize("name", [*SMALL, "pix_resnet50"])
def test_channels_last_gives_the_same(name: str) -> None:
    model = create(name, zero_init_last=False).eval().double()
    x = torch.randn(2, 3, 32, 32).double()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


def test_reductions_are_those_of_the_papers() -> None:
    model = create("pix_resnet50")
    reductions = [block.conv1.reduction for i in (1, 2, 3, 4) for block in getattr(model, f"layer{i}")]
    assert reductions == [1, 4, 4, 2, 4, 4, 4, 2, 4, 4, 4, 4, 4, 2, 4, 4]


def test_weights_of_the_plain_network_fit_but_for_the_squeeze_s_norm() -> None:
    plain, pix = create("resnet29_small"), create("pix_resnet29_small")
    missing, unexpected = pix.load_state_dict(plain.state_dict(), strict=False)
    assert missing == []
    assert {key.split(".")[2] for key in unexpected} == {"bn1"}


def test_the_squeeze_has_neither_norm_nor_activation() -> None:
    block = create("pix_resnet29_small").layer2[0]
    assert isinstance(block.conv1, downmix.PiX)
    assert isinstance(block.bn1, nn.Identity)
    assert isinstance(block.act1, nn.Identity)


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="PiX squeezes by an integer ratio, got 64 channels to 24"):
        create("pix_resnet29_small", channels=(24, 32, 64, 128))


def test_export_keeps_the_outputs_at_any_batch_size() -> None:
    model = create("pix_resnet29_small", zero_init_last=False).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x))
