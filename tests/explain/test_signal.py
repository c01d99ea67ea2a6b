"""What the pictures of the signal show is what the layers do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downmix import (
    AdaptiveSoftPool2d,
    LIPPool2d,
    MixedPool2d,
    PiX,
    PowerAvgPool2d,
    S3Pool2d,
    SoftPool2d,
    StochasticPool2d,
)
from downmix.explain import PiXSignal, PoolSignal, pool_weights, signal_layers, trace_signal

from .test_probabilities import assert_untouched, snapshot

pytestmark = pytest.mark.usefixtures("without_kernels")


def by_hand(x: Tensor, logits: Tensor, size: int, stride: int) -> Tensor:
    """Softmax of the logits in each window, summed where windows overlap."""
    weights = torch.zeros_like(x)
    for top in range(0, x.shape[2] - size + 1, stride):
        for left in range(0, x.shape[3] - size + 1, stride):
            window = (slice(None), slice(None), slice(top, top + size), slice(left, left + size))
            weights[window] += logits[window].flatten(2).softmax(2).unflatten(2, (size, size))
    return weights


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2)])
@pytest.mark.parametrize(
    ("create", "logits"),
    [
        (SoftPool2d, lambda x: x),
        (lambda *window: LIPPool2d(*window, logits=nn.Softplus()), F.softplus),
        (nn.AvgPool2d, torch.zeros_like),
        (nn.MaxPool2d, lambda x: 1e6 * x),
    ],
    ids=["soft", "lip", "avg", "max"],
)
def test_pool_weights_by_hand(create: Callable[..., nn.Module], logits: Any, size: int, stride: int) -> None:
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    pool = create(size, stride)
    torch.testing.assert_close(pool_weights(pool, x), by_hand(x, logits(x), size, stride))
    assert not x.requires_grad
    assert getattr(pool, "gradient", "exact") == "exact"


def test_stochastic_pooling_weighs_by_its_probabilities() -> None:
    x = torch.rand(1, 2, 7, 7, dtype=torch.float64)
    pool = StochasticPool2d(3, 2).train()
    torch.testing.assert_close(pool_weights(pool, x), by_hand(x, x.log(), 3, 2))
    assert pool.training
    assert torch.equal(pool_weights(pool, torch.zeros(1, 1, 3, 3)), torch.zeros(1, 1, 3, 3))


def test_mixed_pooling_shares_out_maximum_and_mean() -> None:
    x = torch.tensor([[[[1.0, 5.0], [2.0, 3.0]]]])
    weights = pool_weights(MixedPool2d(2, alpha=0.2), x)
    torch.testing.assert_close(weights, torch.tensor([[[[0.2, 0.4], [0.2, 0.2]]]]))


@pytest.mark.parametrize(
    "pool",
    [
        *(SoftPool2d(3, 2, 1), AdaptiveSoftPool2d(3), LIPPool2d(3, 2, 1, logits=nn.Softplus())),
        *(PowerAvgPool2d(3, 2, 1, norm_type=3.0), StochasticPool2d(3, 2, 1, ceil_mode=True)),
        *(S3Pool2d(2, padding=1), MixedPool2d(3, 2, 1), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(2)),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_weights_times_values_are_the_outputs(pool: nn.Module) -> None:
    """Whatever the windows; and in training, where some pools draw, as in evaluation."""
    x = torch.rand(2, 3, 8, 6, dtype=torch.float64)
    weights = pool_weights(pool.double().train(), x)
    torch.testing.assert_close((weights * x).sum(), pool.eval()(x).sum())


def test_a_global_pool() -> None:
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(pool_weights(AdaptiveSoftPool2d(1), x), x.flatten(2).softmax(2).view_as(x))


class Unpooled(nn.Module):
    """No parameters, and a pool whose indices the network needs, as in SegNet."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_unpool2d(*self.pool(x), 2)


def test_a_pool_that_returns_indices_in_a_network_without_parameters() -> None:
    x = torch.randn(3, 4, 4)
    found = trace_signal(Unpooled(), "pool", x)
    assert isinstance(found, PoolSignal)
    torch.testing.assert_close(found.output, F.max_pool2d(x, 2))
    torch.testing.assert_close(F.avg_pool2d(found.weights * x, 2) * 4, found.output)


def test_a_pix_layer_with_a_short_last_group() -> None:
    layer, image = PiX(7, 3, threshold=0.5), torch.rand(3, 5, 6)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), layer)
    with torch.no_grad():
        x = model[0](image[None])[0]
        output = model(image[None])[0]
    found = trace_signal(model, "1", image)
    assert isinstance(found, PiXSignal)
    for group in range(3):
        members = x[3 * group : 3 * group + 3]
        torch.testing.assert_close(found.maximum[group], members.amax(0))
        torch.testing.assert_close(found.mean[group], members.mean(0))
        assert torch.equal(found.picked[group], members.argmax(0))
        used = found.maximum if found.picks[group] else found.mean
        torch.testing.assert_close(found.output[group], found.p[group] * used[group])
    assert torch.equal(found.output, output)
    assert 0 < found.picks.sum() < 3  # else one of the branches above went untested


def test_tracing_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), SoftPool2d(2), nn.ReLU(inplace=True))
    model[1].eval()
    compiled: Any = torch.compile(model, backend="eager")
    before = snapshot(model)
    found = trace_signal(compiled, "2", torch.rand(3, 8, 8))
    assert isinstance(found, PoolSignal)
    assert (found.weights.shape, found.output.shape) == ((4, 6, 6), (4, 3, 3))
    assert found.output.min() < 0  # before the ReLU that works in place
    with pytest.raises(RuntimeError):
        trace_signal(model, "2", torch.rand(5, 8, 8))
    assert_untouched(before, model)


def test_bad_input_gets_a_sentence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), PiX(4, 2))
    assert signal_layers(model) == ["1", "2"]
    with pytest.raises(ValueError, match="0 is a Conv2d; a PiX layer or a pool can be shown: 1, 2"):
        trace_signal(model, "0", torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="no layer 'stem'"):
        trace_signal(model, "stem", torch.rand(3, 8, 8))
    part = nn.ModuleDict({"used": nn.MaxPool2d(2), "unused": nn.MaxPool2d(2)})

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.weight = part, nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.part["used"](x)

    with pytest.raises(ValueError, match="did not run part.unused"):
        trace_signal(Partly(), "part.unused", torch.rand(3, 8, 8))
