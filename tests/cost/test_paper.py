import pytest
from torch import nn

from downmix import CBAM, FBSConv2d, PiX, SqueezeExcite, create_squeeze
from downmix.cost import count_macs, paper, profile
from downmix.tools import _paper_figures


@pytest.mark.parametrize(("module", "side", "operations", "megabytes"), _paper_figures.MODULES)
def test_table_1(module: str, side: int, operations: str, megabytes: str) -> None:
    """Operations are cut off after the digits printed."""
    count, floats = (formula(512, side, side) for formula in paper.MODULES[module])
    digits = len(operations.partition(".")[2])
    assert count * 10**digits // 10**6 == int(operations.replace(".", ""))
    assert 4 * floats == int(megabytes.replace(".", ""))


@pytest.mark.parametrize(
    ("module", "operations", "floats"),
    # At 16×2×3, term by term as the source lists them.
    [
        ("SE", 96 + 16 + 1 + 16 + 64 + 96, 16 + 1 + 16 + 96),
        (
            "CBAM",
            96 + 96 + 16 + 1 + 16 + 64 + 16 + 96 + 15 * 6 + 15 * 6 + 12 + 12 + 24 + 96,
            16 + 16 + 1 + 16 + 16 + 96 + 6 + 6 + 12 + 6 + 96,
        ),
        ("FBS", 96 + 256 + 64 + 4 * 96 + 96 + 96, 16 + 16 + 96 + 96),
        ("PiX", 96 + 256 + 64, 16 + 16 + 96),
    ],
)
def test_the_formulas_are_the_sums_of_the_source_s_terms(module: str, operations: int, floats: int) -> None:
    assert [formula(16, 2, 3) for formula in paper.MODULES[module]] == [operations, floats]


def test_the_worked_example() -> None:
    assert paper.squeeze_operations(12, 5, 5, 4) == 1275
    assert paper.pix_operations(12, 5, 5, 4) == 573
    assert paper.pix_operations(12, 5, 5, 4, "weighted") == 798


@pytest.mark.parametrize("fusion", ["threshold", "weighted"])
def test_a_layer_counted_as_it_runs_agrees(fusion: str) -> None:
    assert count_macs(PiX(12, 4, fusion=fusion), (12, 5, 5), "paper") == paper.pix_operations(12, 5, 5, 4, fusion)


def test_squeeze_excite_counted_as_it_runs_agrees() -> None:
    assert count_macs(SqueezeExcite(32), (32, 5, 6), "paper") == paper.se_operations(32, 5, 6)


def test_cbam_counted_as_it_runs_costs_what_the_source_leaves_out() -> None:
    c, h, w = 32, 5, 6
    second_mlp = c * c // 8 + c // 16  # the MLP runs on means and on maxima, the source counts one run
    kernel, norm = 98 * h * w - 2 * h * w, 4 * h * w  # 7×7 over two maps; the BatchNorm of the published code
    assert count_macs(CBAM(c), (c, h, w), "paper") == paper.cbam_operations(c, h, w) + second_mlp + kernel + norm


def test_fbs_counted_as_it_runs_has_a_shift_and_a_mask_more_and_no_sigmoid() -> None:
    c, h, w = 32, 5, 6
    counted = count_macs(nn.Sequential(FBSConv2d(c, c, 1), nn.ReLU()), (c, h, w), "paper")
    convolution, shift = c * c * h * w, c * h * w
    relu_and_mask = 3 * c  # g itself, mask · g and mask · β, where the source has a sigmoid of 4C
    assert counted - convolution == paper.fbs_operations(c, h, w) + shift + relu_and_mask - 4 * c


@pytest.mark.parametrize("layer", [SqueezeExcite(32), CBAM(32), FBSConv2d(32, 32, 1), create_squeeze("fbs", 32, 4)])
def test_no_operator_of_the_channel_modules_is_without_a_formula(layer: nn.Module) -> None:
    assert not profile(layer, (32, 5, 6)).uncounted("macs")
