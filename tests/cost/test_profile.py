from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import downmix
from downmix.cost import CONVENTIONS, Device, count_macs, measure_device, peak_memory_bytes, profile
from downmix.cost._run import images
from downmix.ops import pix


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.unused = nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_layers_counted_by_hand() -> None:
    found = profile(nn.Sequential(Residual(), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), (4, 2, 2))
    conv, residual, norm, relu, unused = found.layers
    n = 16
    assert [layer.name for layer in found.layers] == ["0.conv", "0", "1", "2", "0.unused"]
    assert (conv.macs, conv.elements, conv.params) == (4 * n, {"add": n}, 20)
    assert (conv.read_bytes, conv.written_bytes) == (4 * (n + 16 + 4), 4 * n)
    assert (residual.macs, residual.elements, residual.params) == (0, {"add": n}, 0)
    assert (residual.read_bytes, residual.written_bytes) == (4 * 2 * n, 4 * n)
    assert norm.elements == {"multiply": n + 4, "add": n + 8, "sqrt": 4, "divide": 4}
    assert (norm.read_bytes, norm.written_bytes) == (4 * (n + 16), 4 * n)
    assert (relu.elements, relu.read_bytes, relu.written_bytes) == ({"compare": n}, 4 * n, 4 * n)
    assert (unused.params, unused.calls) == (5, [])
    assert [layer.operations("ptflops") for layer in found.layers] == [5 * n, 0, 2 * n, n, 0]
    assert [layer.operations("paper") for layer in found.layers] == [4 * n, n, 4 * n, n, 0]
    assert found.total.macs == 4 * n
    assert found.total.params == 33
    assert conv.intensity == (8 * n + n) / (4 * (2 * n + 20))
    assert found.total.output == (1, 4, 2, 2)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_total_is_what_count_macs_says(convention: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), downmix.PiX(8, 2), nn.MaxPool2d(2))
    total = profile(model, (3, 8, 8), batch_size=2).total
    assert total.operations(convention) == 2 * count_macs(model, (3, 8, 8), convention) > 0


def test_a_shared_layer_has_its_parameters_once() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    total = profile(nn.Sequential(layer, nn.ReLU(), layer), (3, 4, 4)).total
    assert (total.params, total.macs) == (9, 2 * 9 * 16)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.AvgPool2d(2), {"add": 8 * 3, "divide": 8}),
        (nn.MaxPool2d(3, 1, 1), {"compare": 32 * 8}),
        (nn.AdaptiveAvgPool2d(1), {"add": 30, "divide": 2}),
        (nn.AdaptiveAvgPool2d(3), {"add": 2 * (36 - 9), "divide": 18}),  # 3 windows of 2 on a side of 4 overlap
        (nn.AdaptiveMaxPool2d(2), {"compare": 24}),
        (nn.Sigmoid(), {"add": 64, "exp": 32, "divide": 32}),
        (nn.Hardswish(), {"add": 32, "compare": 64, "multiply": 64}),
        (nn.Softmax(1), {"compare": 16, "add": 48, "exp": 32, "divide": 32}),
        (nn.Flatten(), {}),
        (nn.Upsample(scale_factor=2), {}),
        (downmix.SoftPool2d(2), {"compare": 24, "add": 80, "exp": 32, "multiply": 32, "divide": 8}),
        (
            downmix.LIPPool2d(2, logits=nn.Identity()),
            {"compare": 24, "add": 80, "exp": 32, "multiply": 32, "divide": 8},
        ),
        (downmix.PowerAvgPool2d(2), {"compare": 56, "divide": 40, "pow": 40, "add": 24, "multiply": 8}),
        (
            nn.Sequential(nn.ReLU(), downmix.StochasticPool2d(2)),
            {"compare": 32 + 56, "divide": 40, "multiply": 40, "add": 48},
        ),
        (nn.GroupNorm(2, 2), {"add": 128, "multiply": 96, "sqrt": 2, "divide": 6}),
        (nn.InstanceNorm2d(2), {"add": 32 + 4 + 96, "multiply": 32 + 2 + 32, "sqrt": 2, "divide": 2}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_element_operations_counted_by_hand(module: nn.Module, expected: dict[str, int]) -> None:
    assert profile(nn.Sequential(module), (2, 4, 4)).total.elements == expected


def _fusion(elements: Counter[str]) -> dict[str, int]:
    return {kind: count for kind, count in elements.items() if kind not in ("exp", "divide")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"compare or add": 96, "multiply": 32, "add": 0}),
        ({"operator": "max"}, {"compare": 96, "multiply": 32, "add": 0}),
        ({"operator": "avg"}, {"multiply": 32, "add": 96}),
        ({"fusion": "weighted"}, {"compare": 96, "multiply": 64, "add": 96 + 32}),
    ],
)
def test_element_operations_of_pix(options: dict[str, str], expected: dict[str, int]) -> None:
    mean_and_sigmoid = 8 * 15 + 2 * 2  # additions
    found = profile(downmix.PiX(8, 4, **options), (8, 4, 4)).total.elements
    assert _fusion(found) == {**expected, "add": expected["add"] + mean_and_sigmoid}
    assert pix.operations((1, 8, 4, 4), 4) == 96


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.special.bessel_j0(x)).amax((2, 3)) * torch.linalg.det(x)


def test_operators_without_a_formula_are_listed() -> None:
    found = profile(nn.Sequential(Odd()), (3, 4, 4))
    assert found.uncounted("macs") == {"aten.special_bessel_j0": 1, "aten._linalg_det": 1}
    assert found.uncounted("paper") == found.uncounted("macs")
    assert set(found.uncounted("ptflops")) == {
        "aten.special_bessel_j0",
        "aten._linalg_det",
        "aten.relu",
        "aten.amax",
        "aten.mul",
    }


def test_what_a_convention_leaves_out_is_listed() -> None:
    model = nn.Sequential(downmix.PiX(4, 2), nn.MaxPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Identity())
    found = profile(model, (4, 4, 4))
    assert found.uncounted("ptflops") == {"downmix.pick_or_mix": 1, "aten.sigmoid": 1}
    assert found.uncounted("paper") == {"aten.max_pool2d_with_indices": 1}
    assert found.uncounted("macs") == {}


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().transpose_(2, 3).unsqueeze_(1).squeeze_(1).as_strided_((1, 2), (1, 1))


def test_views_in_place_are_free() -> None:
    found = profile(nn.Sequential(Turned()), (2, 4, 4))
    assert [call.op for call in found.total.calls] == ["aten.relu"]
    assert found.uncounted("macs") == {}


def test_an_operator_with_a_formula_of_its_own_is_counted() -> None:
    counted = profile(nn.Sequential(downmix.AdaptiveSoftPool2d(2)), (2, 4, 4))
    assert counted.uncounted("macs") == {}
    assert counted.total.elements["exp"] == 32


def test_the_roofline_takes_the_longer_of_the_two_times() -> None:
    found = profile(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU()), (4, 2, 2))
    conv, relu = found.layers
    device = Device(flops_per_s=1000, bytes_per_s=1000)
    assert conv.roofline_ms(device) == 4 * (16 + 16 + 16)  # bytes, as there are only 128 operations
    assert relu.roofline_ms(device) == 4 * (16 + 16)
    slow = Device(flops_per_s=10, bytes_per_s=1000)
    assert conv.roofline_ms(slow) == 12800
    assert found.total.roofline_ms(slow) == 12800 + 1600


def test_a_device_is_measured() -> None:
    measured = measure_device(seconds=0.01)
    assert 1e8 < measured.flops_per_s < 1e14
    assert 1e8 < measured.bytes_per_s < 1e13


def test_bad_values_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="bytes_per_s must be positive, got 0"):
        Device(1e9, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        profile(nn.Conv2d(3, 3, 1), (3, 4, 4), batch_size=0)
    for training in (False, True):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            peak_memory_bytes(nn.Conv2d(3, 3, 1), (3, 4, 4), batch_size=0, training=training)
    for size in (64, (3, 0, 4), ()):
        with pytest.raises(ValueError, match="input_size must be positive sizes, such as"):
            profile(nn.Conv2d(3, 3, 1), size)  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_has_no_layers_to_count_is_refused() -> None:
    """A traced network counted as 0 operations."""
    conv = nn.Conv2d(3, 3, 1).eval()
    traced: Any = torch.jit.trace(conv, torch.zeros(1, 3, 4, 4))
    with pytest.raises(TypeError, match=r"^model is scripted or traced already.*; count the network that it was made"):
        count_macs(traced, (3, 4, 4))
    with pytest.raises(TypeError, match="layer '1' of model is scripted or traced already"):
        profile(nn.Sequential(conv, torch.jit.script(conv)), (3, 4, 4))
    with pytest.raises(TypeError, match="model must be an nn.Module, got str"):
        count_macs("resnet50")  # pyright: ignore[reportArgumentType]


def test_the_first_floating_point_value_says_what_images_are_made_of() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, dtype=torch.float64))
    model.register_parameter("index", nn.Parameter(torch.arange(3), requires_grad=False))
    assert not next(model.parameters()).is_floating_point()
    assert count_macs(model, (3, 4, 4), "macs") == 12 * 16
    assert images(nn.BatchNorm2d(3, affine=False, dtype=torch.float64), 1, (3, 4, 4)).dtype == torch.float64


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_figures(mode: Callable[[], Any]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 2)
    )
    expected, macs = profile(model, (3, 8, 8)), count_macs(model, (3, 8, 8), "macs")
    with mode():
        assert profile(model, (3, 8, 8)) == expected
        assert count_macs(model, (3, 8, 8), "macs") == macs == 8 * 27 * 36 + 72 * 2
