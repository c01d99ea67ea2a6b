"""Parameters and GMACs: those the papers print, those of an independent counter, and those in docs/models.md."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import ptflops
import pytest
import timm
import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import nn

from downmix import PiX
from downmix.cost import count_macs
from downmix.models._networks import baseline_of, registered

# As the specification's section 1 prints them; ResNet-50, 101 and 152 are in tests/cost/test_conventions.py.
PRINTED = [
    ("resnet50_r8", "12.38", "1.850"),
    ("pix_resnet50_r8", "12.38", "1.386"),
    ("vgg16_1x1_r2", "10.43", "10.06"),
    ("pix_vgg16_1x1_r2", "10.43", "9.39"),
    ("vgg16_1x1_r4", "7.43", "6.72"),
    ("pix_vgg16_1x1_r4", "7.43", "6.38"),
    ("mobilenetv2_100", "3.50", "0.320"),
    ("pix_mobilenetv2_100", "3.50", "0.250"),
    # Not derivable: the source prints 19.6 and 2.82. These are what is left when only the squeezes go.
    ("dwp_resnet50", "21.2", "3.18"),
]
BASELINE = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
TABLE_ROW = re.compile(r"^\| `(\w+)` \|.*\| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
TABLE = TABLE_ROW.findall((Path(__file__).parents[2] / "docs" / "models.md").read_text())


def figures(name: str) -> tuple[float, float]:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
        macs = count_macs(model, model.pretrained_cfg["input_size"])
    return sum(p.numel() for p in model.parameters()) / 1e6, macs / 1e9


def half_a_digit(printed: str) -> float:
    return 0.5 * 10.0 ** -len(printed.partition(".")[2]) + 1e-9


@pytest.mark.parametrize(("name", "params", "gmacs"), [*PRINTED, *TABLE])
def test_printed_figures_come_out(name: str, params: str, gmacs: str) -> None:
    found = figures(name)
    assert found[0] == pytest.approx(float(params), abs=half_a_digit(params))
    assert found[1] == pytest.approx(float(gmacs), abs=half_a_digit(gmacs))


def test_baselines_are_those_of_the_page() -> None:
    """But for the plain networks that are baselines themselves."""
    found = BASELINE.findall((Path(__file__).parents[2] / "docs" / "models.md").read_text())
    variants = [(name, baseline) for name, baseline in found if re.match("pix|softpool|dwp|groupconv|fbs", name)]
    assert len(variants) > 40
    assert [(name, baseline_of(name)) for name, _ in variants] == variants
    assert baseline_of("test_pix_resnet") == "test_resnet"
    assert baseline_of("resnet50:squeeze=pix,pool=soft") == "resnet50"
    for name in ("resnet50", "resnet50:base_width=52", "vgg16_gap"):
        with pytest.raises(ValueError, match=f"the name {name} says of no other network"):
            baseline_of(name)


def test_the_page_lists_every_network() -> None:
    assert [name for name, *_ in TABLE if timm.is_model(name)] == [name for name, *_ in TABLE]
    assert {name for name in registered() if not name.startswith("test_")} <= {name for name, *_ in TABLE}


def test_se_fits_once_its_pools_are_counted() -> None:
    """The source prints 28.0M, 4.13 and 3.19: cut off, rounded, cut off, with 1 per input element of SE's pool.

    timm takes SE's mean by a function, which this convention leaves out.
    """
    pooled = (
        sum(blocks * 4 * c * s * s for blocks, c, s in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))) / 1e9
    )
    plain, pix = figures("seresnet50"), figures("pix_seresnet50")
    assert (int(10 * plain[0]), int(10 * pix[0])) == (280, 280)
    assert plain[1] + pooled == pytest.approx(4.13, abs=0.0005)
    assert int(100 * (pix[1] + pooled)) == 319


def test_full_mobilenet_saves_what_is_printed_but_the_totals_fit_no_choice_of_convolutions() -> None:
    """The source prints 25.2M, 4.65 and 4.58; all 17 depthwise convolutions made full give 44.05M, 5.57 and 5.50."""
    plain, pix = figures("mobilenetv2_100_full"), figures("pix_mobilenetv2_100_full")
    assert plain[1] - pix[1] == pytest.approx(4.65 - 4.58, abs=0.005)
    with torch.device("meta"):
        model = timm.create_model("mobilenetv2_100")
        blocks = [m for m in model.modules() if isinstance(m, InvertedResidual | DepthwiseSeparableConv)]
        size, added = 112, []
        for block in blocks:
            size //= block.conv_dw.stride[0]
            more = 9 * block.conv_dw.in_channels * (block.conv_dw.in_channels - 1)
            added.append((more / 1e6, more * size * size / 1e9))
    assert len(added) == 17
    choices = np.array(list(itertools.product((0, 1), repeat=17)))
    totals = np.array(figures("mobilenetv2_100")) + choices @ np.array(added)
    np.testing.assert_allclose(totals[-1], plain, rtol=1e-6)  # the count by hand is the network's
    fits = (abs(totals[:, 0] - 25.2) < 0.1) & (abs(totals[:, 1] - 4.65) < 0.01)
    assert not fits.any()


def test_the_plain_squeeze_by_name_gives_the_baseline() -> None:
    with torch.device("meta"):
        model = timm.create_model("pix_resnet50", block_args={"squeeze": "conv"})
        assert (sum(p.numel() for p in model.parameters()) / 1e6, count_macs(model) / 1e9) == figures("resnet50")


def test_fbs_squeeze_has_the_saliency_that_the_printed_parameters_tell() -> None:
    assert round(figures("fbs_resnet50")[0]) == 37


@pytest.mark.parametrize(
    "name", ["pix_resnet50_r8", "pix_resnet50_down2", "pix_resnet18_prune2", "vgg16_1x1_r2", "pix_vgg16_1x1_r4"]
)
def test_agrees_with_ptflops(name: str) -> None:
    def count_pix(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        module.__flops__ += inputs[0].numel() + module.weight.numel()

    model: nn.Module = timm.create_model(name)
    expected = ptflops.get_model_complexity_info(
        model,
        (3, 64, 64),
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        custom_modules_hooks={PiX: count_pix},
        backend_specific_config={"count_functional": False},
    )
    assert (count_macs(model, (3, 64, 64)), sum(p.numel() for p in model.parameters())) == expected
