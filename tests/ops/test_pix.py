import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import downmix
from downmix.ops import pix

from .standard import StandardTests


def by_the_book(
    x: Tensor,
    p: Tensor,
    reduction: int,
    threshold: float = 0.5,
    fusion: str = "threshold",
    operator: str = "max+avg",
    legacy_tail: bool = False,
) -> Tensor:
    """The specification's formulas, a value at a time."""
    batch, channels, height, width = x.shape
    y = torch.zeros(batch, math.ceil(channels / reduction), height, width, dtype=torch.float64)
    for b, i, h, w in (index.tolist() for index in torch.ones_like(y).nonzero()):
        group = x[b, i * reduction : (i + 1) * reduction, h, w].tolist()
        mean = sum(group) / (reduction if legacy_tail else len(group))
        values = {"max": max(group), "min": min(group), "avg": mean}
        upper, lower = operator.split("+") if "+" in operator else (operator, operator)
        pi = p[b, i].item()
        if fusion == "weighted":
            y[b, i, h, w] = pi * values[upper] + (1 - pi) * values[lower]
        else:
            y[b, i, h, w] = pi * values[upper if pi < threshold else lower]
    return y


class TestPickOrMix(StandardTests):
    operator: ClassVar = pix._pick_or_mix
    options: ClassVar = [
        {},
        {"fusion": "weighted"},
        {"operator": "max", "reduction": 1},
        {"operator": "avg", "legacy_tail": True},
        {"operator": "min", "fusion": "weighted", "threshold": 0.3},
        {"reduction": 16},
    ]

    def inputs(self, batch: int = 2, reduction: int = 4, **option: Any) -> tuple[Tensor, ...]:
        return torch.randn(batch, 10, 3, 5).double(), torch.rand(batch, -(-10 // reduction)).double()

    def call(self, *tensors: Tensor, **option: Any) -> Tensor:
        return downmix.pick_or_mix(*tensors, **({"reduction": 4} | option))

    def constants(self, **option: Any) -> tuple[Any, ...]:
        defaults = {
            "reduction": 4,
            "threshold": 0.5,
            "fusion": "threshold",
            "operator": "max+avg",
            "legacy_tail": False,
        }
        return tuple((defaults | option).values())

    @pytest.mark.parametrize("reduction", [1, 3, 4, 11])
    def test_equals_the_specification(self, option: dict[str, Any], reduction: int) -> None:
        option = option | {"reduction": reduction}
        x, p = self.inputs(**option)
        torch.testing.assert_close(self.call(x, p, **option), by_the_book(x, p, **option).to(x.device))


def column(*values: float) -> Tensor:
    """One pixel whose channels have these values."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def test_values_worked_out_by_hand() -> None:
    x, p = column(1, 5, 2, 4, 3, 3), torch.tensor([[0.25, 0.5, 0.75]], dtype=torch.float64)
    assert downmix.pick_or_mix(x, p, 2).flatten().tolist() == [1.25, 1.5, 2.25]  # p = t mixes
    assert downmix.pick_or_mix(x, p, 2, fusion="weighted").flatten().tolist() == [3.5, 3.5, 3.0]
    assert downmix.pick_or_mix(x, p, 2, threshold=0.0).flatten().tolist() == [0.75, 1.5, 2.25]
    assert downmix.pick_or_mix(x, p, 2, threshold=1.0).flatten().tolist() == [1.25, 2.0, 2.25]
    assert downmix.pick_or_mix(x, p, 2, operator="min").flatten().tolist() == [0.25, 1.0, 2.25]


def test_short_last_group() -> None:
    x, p = column(1, 2, 3, 4, 6), torch.ones(1, 2, dtype=torch.float64)
    assert downmix.pick_or_mix(x, p, 3).flatten().tolist() == [2.0, 5.0]
    assert downmix.pick_or_mix(x, p, 3, legacy_tail=True).flatten().tolist() == [2.0, 10 / 3]


def test_gradient_goes_to_the_first_of_equal_maxima() -> None:
    x, p = column(7, 7, 1, 2, 5, 5).requires_grad_(), torch.full((1, 2), 0.25, dtype=torch.float64, requires_grad=True)
    downmix.pick_or_mix(x, p, 3).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25, 0, 0, 0, 0.25, 0]
    assert p.grad is not None
    assert p.grad.tolist() == [[7, 5]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    x, p = column(1, value, 1, 2).repeat(1, 2, 1, 1), torch.tensor([[0.25, 0.25, 0.75, 0.75]], dtype=torch.float64)
    y = downmix.pick_or_mix(x, p, 2).flatten()
    picked = value if value > 0 or math.isnan(value) else 1.0
    torch.testing.assert_close(y, torch.tensor([0.25 * picked, 0.5, value, 1.125], dtype=torch.float64), equal_nan=True)


def test_an_infinity_that_is_not_chosen_leaves_no_nan() -> None:
    x, p = column(1, -math.inf).requires_grad_(), torch.full((1, 1), 0.25, dtype=torch.float64, requires_grad=True)
    downmix.pick_or_mix(x, p, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25, 0]
    assert p.grad is not None
    assert p.grad.tolist() == [[1]]


def test_unbatched_and_either_shape_of_p() -> None:
    x, p = torch.randn(2, 8, 3, 3), torch.rand(2, 2)
    expected = downmix.pick_or_mix(x, p, 4)
    assert torch.equal(downmix.pick_or_mix(x, p[:, :, None, None], 4), expected)
    assert torch.equal(downmix.pick_or_mix(x[1], p[1], 4), expected[1])
    assert torch.equal(downmix.pick_or_mix(x[1], p[1, :, None, None], 4), expected[1])


def test_channels_last_stays() -> None:
    x = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)
    assert downmix.pick_or_mix(x, torch.rand(2, 2), 4).is_contiguous(memory_format=torch.channels_last)


def test_operations_follow_the_source() -> None:
    assert pix.operations((1, 12, 5, 5), 4) == 225  # the source's worked example
    assert pix.operations((1, 12, 5, 5), 4, fusion="weighted") == 450
    assert pix.operations((1, 5, 1, 1), 3) == 3  # groups of 3 and 2: 2 + 1
    with FlopCounterMode(display=False) as counter:
        downmix.pick_or_mix(torch.randn(1, 12, 5, 5), torch.rand(1, 3), 4)
    assert counter.get_total_flops() == 225


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": 0}, ValueError, "reduction must be a positive integer.* got 0"),
        ({"reduction": 4.5}, ValueError, "reduction must be a positive integer.* got 4.5; .*1×1 convolution"),
        ({"reduction": "4"}, TypeError, "reduction must be a positive integer.* got '4'"),
        ({"reduction": True}, TypeError, "reduction must be a positive integer"),
        ({"threshold": math.nan}, ValueError, "threshold must be a number.* got NaN"),
        ({"threshold": None}, TypeError, "threshold must be a number.* got None"),
        ({"fusion": "mean"}, ValueError, "fusion must be one of 'threshold', 'weighted', got 'mean'"),
        ({"operator": "median"}, ValueError, r"operator must be one of 'max\+avg', .* got 'median'"),
        ({"x": torch.zeros(2, 8, 3, 3, dtype=torch.int64)}, TypeError, "x must be a tensor of float16.*int64"),
        ({"x": [1.0]}, TypeError, "x must be a floating-point tensor, got list"),
        ({"x": torch.zeros(8, 3)}, ValueError, r"x must be \[B, C, H, W\].* got \[8, 3\]"),
        ({"x": torch.zeros(2, 0, 3, 3)}, ValueError, "at least one channel"),
        ({"p": torch.zeros(2, 2, dtype=torch.bool)}, TypeError, "p must be a tensor of float16.*bool"),
        (
            {"p": torch.zeros(2, 3)},
            ValueError,
            r"= 2 channels for C=8, reduction=4, got \[2, 3\]; pass p of shape \[2, 2",
        ),
        ({"p": torch.zeros(1, 2)}, ValueError, "pass p of shape"),
        ({"p": torch.zeros(2, 2, device="meta")}, ValueError, "one device, got x on cpu and p on meta"),
    ],
)
def test_bad_input_gets_a_sentence(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.randn(2, 8, 3, 3), "p": torch.rand(2, 2), "reduction": 4}
    with pytest.raises(error, match=message):
        downmix.pick_or_mix(**(arguments | change))


@pytest.mark.parametrize(
    ("layout", "trains", "held"),
    [
        (torch.contiguous_format, False, False),
        (torch.contiguous_format, True, True),
        (torch.channels_last, False, True),
    ],
)
def test_a_compiled_graph_holds_the_faster_form(layout: torch.memory_format, trains: bool, held: bool) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=layout).requires_grad_(trains)
    compiled = torch.compile(lambda x, p: downmix.pick_or_mix(x, p, 4), backend=backend, fullgraph=True)
    compiled(x, torch.rand(2, 2))
    assert any("downmix" in str(node.target) for node in graphs[0].graph.nodes) == held
