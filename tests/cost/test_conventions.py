from typing import Any

import ptflops
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from downmix import PiX
from downmix.cost import count_macs, measure_cost

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
