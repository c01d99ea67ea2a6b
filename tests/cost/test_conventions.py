from collections.abc import Callable
from functools import partial
from typing import Any

import ptflops
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import downmix
from downmix import PiX
from downmix.cost import count_macs, measure_cost, profile

# Specification, section 1: params in millions, GMACs of the baseline and with PiX.
TABLE = [("resnet50", 25.55, 4.122, 3.189), ("resnet101", 44.5, 7.850, 6.048), ("resnet152", 60.2, 11.581, 8.910)]


@pytest.mark.parametrize(("name", "params", "baseline", "with_pix"), TABLE)
def test_the_papers_table(name: str, params: float, baseline: float, with_pix: float) -> None:
    with torch.device("meta"):
        plain, pix = timm.create_model(name), timm.create_model(f"pix_{name}")
    assert sum(p.numel() for p in plain.parameters()) / 1e6 == pytest.approx(params, abs=0.06)
    assert sum(p.numel() for p in pix.parameters()) / 1e6 == pytest.approx(params, abs=0.06)
    # The counts come out as 3.18847: the specification's 3.189 was rounded twice.
    assert count_macs(plain) / 1e9 == pytest.approx(baseline, abs=0.00055)
    assert count_macs(pix) / 1e9 == pytest.approx(with_pix, abs=0.00055)


def _pix_for_ptflops(module: PiX, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    module.__flops__ += inputs[0].numel() + module.weight.numel()


@pytest.mark.parametrize("name", ["resnet50", "pix_resnet50", "resnet29_small", "vgg11_bn", "mobilenet_v2"])
def test_agrees_with_ptflops(name: str) -> None:
    # timm's MobileNet-v2 has BatchNorms of its own class, which ptflops leaves out.
    model = torchvision.models.mobilenet_v2() if name == "mobilenet_v2" else timm.create_model(name)
    expected, params = ptflops.get_model_complexity_info(
        model,
        (3, 64, 64),
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        custom_modules_hooks={PiX: _pix_for_ptflops},
        backend_specific_config={"count_functional": False},
    )
    ours = measure_cost(model, (3, 64, 64))
    assert (ours.macs, ours.params) == (expected, params)


SEQUENCE, MAP = (5, 8), (8, 6, 6)
KNOWN: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Sequential(nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(4, 6, 2, stride=2)), MAP),
    (lambda: nn.ConvTranspose2d(8, 6, 3, 2, groups=2, bias=False), MAP),
    (lambda: nn.ConvTranspose1d(5, 6, 3, 2), SEQUENCE),
    (lambda: nn.ConvTranspose3d(1, 6, 3), (1, *MAP)),
    (lambda: nn.Conv3d(1, 6, 3), (1, *MAP)),
    *((kind, MAP) for kind in (nn.ReLU, nn.ReLU6, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid)),
    (lambda: nn.LayerNorm(6), MAP),
    (lambda: nn.GroupNorm(2, 8), MAP),
    (lambda: nn.GroupNorm(2, 8, affine=False), MAP),
    (lambda: nn.InstanceNorm2d(8), MAP),
    (lambda: nn.InstanceNorm2d(8, affine=True), MAP),
    (lambda: nn.BatchNorm2d(8, affine=False), MAP),
    (lambda: nn.BatchNorm1d(5), SEQUENCE),
    (lambda: nn.Upsample(scale_factor=2), MAP),
    (lambda: nn.MaxPool2d(2), MAP),
    (lambda: nn.AdaptiveMaxPool2d(2), MAP),
    (lambda: nn.AvgPool1d(2), SEQUENCE),
    (lambda: nn.Linear(8, 3), SEQUENCE),
    *((partial(kind, 8, 3, 2, bidirectional=True), SEQUENCE) for kind in (nn.RNN, nn.GRU, nn.LSTM)),
    *((partial(kind, 8, 3, bias=False, batch_first=True), SEQUENCE) for kind in (nn.RNN, nn.GRU, nn.LSTM)),
    *((partial(kind, 8, 3), (8,)) for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell)),
    (lambda: SelfAttention(nn.MultiheadAttention(8, 2)), SEQUENCE),
    (lambda: SelfAttention(nn.MultiheadAttention(8, 2, bias=False, batch_first=True)), SEQUENCE),
    (lambda: Deformable(torchvision.ops.DeformConv2d(8, 6, 3, groups=2)), MAP),
]


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


class Deformable(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x, x.new_zeros(len(x), 18, 4, 4))
        return y + self.conv(x, x.new_zeros(len(x), 18, 4, 4), x.new_ones(len(x), 9, 4, 4))


@pytest.mark.parametrize(("make", "size"), KNOWN)
def test_agrees_with_ptflops_layer_by_layer(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    model: Any = nn.Sequential(make())
    expected, _ = ptflops.get_model_complexity_info(
        model,
        size,
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        backend_specific_config={"count_functional": False},
    )
    assert count_macs(model, size) == expected  # pyright: ignore[reportArgumentType]


def test_pools_that_ptflops_does_not_know_count_as_the_others() -> None:
    for pool in (nn.LPPool2d(2, 2), downmix.SoftPool2d(2), nn.MaxPool2d(2)):
        assert count_macs(nn.Sequential(pool), MAP) == 8 * 36


def test_derived_layers_count_as_their_base_though_ptflops_leaves_them_out() -> None:
    with torch.device("meta"):
        model = timm.create_model("efficientnet_b0")
    found = profile(model, (3, 64, 64)).layers
    assert sum(layer.ptflops or 0 for layer in found) == 33_262_052 + 1_100_032
    assert sum(layer.ptflops or 0 for layer in found if layer.kind == "BatchNormAct2d") == 1_100_032


def test_counted_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), PiX(8, 4), nn.AvgPool2d(2)
    )
    conv, norm, relu = 8 * 16 * 27, 2 * 8 * 16, 8 * 16
    pix, pool = 8 * 16 + 2 * 8, 2 * 16
    assert count_macs(model, (3, 4, 4)) == conv + norm + relu + pix + pool


def test_the_same_counted_by_the_other_conventions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), PiX(8, 4), nn.MaxPool2d(2))
    conv, norm, relu = 8 * 16 * 27, 4 * 8 * 16, 8 * 16
    pix = 8 * 16 + 2 * 8 + 4 * 2 + 3 * 2 * 16  # mean, linear map, sigmoid, fusion
    assert count_macs(model, (3, 4, 4), "paper") == conv + norm + relu + pix
    assert count_macs(model, (3, 4, 4), "macs") == conv + 2 * 8


@pytest.mark.parametrize("name", ["pix_resnet50", "mobilenetv3_small_050", "resnext26ts", "vit_tiny_patch16_224"])
def test_multiply_adds_are_half_of_what_torch_counts(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.empty(1, *model.pretrained_cfg["input_size"]))
    counts = counter.get_flop_counts()["Global"]
    expected = sum(count for op, count in counts.items() if not str(op).startswith("downmix"))
    assert 2 * count_macs(model, model.pretrained_cfg["input_size"], "macs") == expected


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="convention must be one of 'ptflops', 'paper', 'macs', got 'flops'"):
        count_macs(nn.Conv2d(3, 8, 1), (3, 4, 4), "flops")
