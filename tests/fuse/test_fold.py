"""BatchNorms are folded where that changes nothing, and only there."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from downmix.fuse import Step, fold, fold_batch_norms
from downmix.tools._bench_networks import settle_batch_norms


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


class Branches(nn.Module):
    """Of five convolutions with a BatchNorm behind them, two can be folded: ``plain`` and ``last``."""

    def __init__(self) -> None:
        super().__init__()
        # Defined in another order than they run.
        self.norm_last, self.norm_shared, self.norm_read_twice, self.norm_twice = (nn.BatchNorm2d(4) for _ in range(4))
        self.norm_act = BatchNormAct2d(4, act_layer=nn.SiLU)
        self.last, self.shared, self.read_twice, self.plain = (nn.Conv2d(4, 4, 1, bias=i > 1) for i in range(4))
        self.twice = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.read_twice(x)
        x = y * self.norm_read_twice(y)
        x = self.norm_act(self.plain(x))
        x = self.norm_twice(self.twice(x)) + self.twice(x)
        x = self.norm_shared(self.shared(x)) + self.norm_shared(x)
        return self.norm_last(self.last(x)).mean((2, 3))


def test_only_what_alone_reads_a_convolution_is_folded() -> None:
    network, images = Branches().eval(), torch.randn(3, 4, 5, 5)
    settle_batch_norms(network, images)
    expected = network(images)
    folded, steps = fold_batch_norms(network, images)
    names = {name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)}
    reasons = {step.name: step.why_not for step in steps}
    assert names == {name for name in reasons if reasons[name]} == {"norm_shared", "norm_read_twice", "norm_twice"}
    assert reasons["norm_shared"] == "runs more than once in a forward pass"
    assert reasons["norm_read_twice"] == reasons["norm_twice"]
    assert "runs twice, or whose output something else reads" in reasons["norm_twice"]
    assert isinstance(folded.norm_act, nn.SiLU)
    torch.testing.assert_close(folded(images), expected)
    assert len(norms(network)) == 5


class Named(nn.Module):
    """A convolution and a BatchNorm, each with a name of its own and one in a block, or in a list."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        layers = [self.conv, self.norm, nn.ReLU()]
        self.body = layers if kind == "list" else nn.Sequential(*layers)
        if kind == "two blocks":
            self.again = nn.Sequential(self.body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body:
            x = layer(x)
        return x


@pytest.mark.parametrize("kind", ["block", "two blocks", "list"])
def test_layers_with_several_names_are_folded_under_all(kind: str) -> None:
    network, images = Named(kind).eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    expected = network(images)
    folded, steps = fold_batch_norms(network, images)
    torch.testing.assert_close(folded(images), expected)
    assert steps == [Step("norm")]
    assert not norms(folded)
    assert folded.body[0] is folded.conv
    torch.testing.assert_close(folded.conv(images).relu(), expected)


def prune_weight(network: nn.Sequential) -> None:
    prune.l1_unstructured(network[0], "weight", 0.5)


def prune_bias(network: nn.Sequential) -> None:
    prune.l1_unstructured(network[0], "bias", 0.5)


def normalise_weight(network: nn.Sequential) -> None:
    torch.nn.utils.weight_norm(network[0])


def parametrize_weight(network: nn.Sequential) -> None:
    torch.nn.utils.parametrizations.spectral_norm(network[0])


def double_convolution(network: nn.Sequential) -> None:
    network[0].register_forward_hook(lambda module, args, output: 2 * output)


def double_input(network: nn.Sequential) -> None:
    network[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))


def double_norm(network: nn.Sequential) -> None:
    network[1].register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        (prune_weight, "reads a convolution with a weight that something else computes"),
        (prune_bias, "reads a convolution with a weight that something else computes"),
        (normalise_weight, "reads a convolution with a weight that something else computes"),
        (parametrize_weight, "reads a convolution with a weight that something else computes"),
        (double_convolution, "does not read a convolution"),  # but what the hook made of its output
        (double_input, "reads a convolution that carries a forward hook"),
        (double_norm, "carries a forward hook"),
    ],
)
def test_hooks_and_computed_weights_stay(change: Callable[[nn.Sequential], None], why_not: str) -> None:
    network, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network.eval(), images)
    change(network)
    with torch.no_grad():
        expected = network(images)
        folded, steps = fold_batch_norms(network, images)
        torch.testing.assert_close(folded(images), expected)
    assert steps[0].why_not.startswith(why_not)


class Standardised(nn.Conv2d):
    """As timm's and Hugging Face's convolutions of BiT."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Cubic(nn.Conv2d):
    """Built in its own way, run in torch's, as the convolutions of torchvision's video networks."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3)


class Renormed(nn.BatchNorm2d):
    """Torch's under another name."""


class OwnFrozen(nn.Module):
    """A frozen BatchNorm that hides its epsilon in its forward, as DETR's in Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.rand(8))
        self.register_buffer("running_var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (value[:, None, None] for value in (self.running_mean, self.running_var))
        return (x - mean) / (var + 1e-5).sqrt()


FROZEN = freeze_batch_norm_2d(nn.Sequential(nn.BatchNorm2d(8), BatchNormAct2d(8)))


@pytest.mark.parametrize(
    ("conv", "norm", "why_not"),
    [
        (Cubic(), Renormed(8), ""),
        (Standardised(3, 8, 3), nn.BatchNorm2d(8), "reads a Standardised, whose forward may differ from torch's"),
        (nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8), ""),
        (nn.Conv2d(3, 8, 3), FROZEN[0], ""),
        (nn.Conv2d(3, 8, 3), FROZEN[1], ""),
        (nn.Conv2d(3, 8, 3), OwnFrozen(), "is a OwnFrozen, whose forward may differ from torch's"),
    ],
)
def test_classes_of_other_packages(conv: nn.Module, norm: nn.Module, why_not: str) -> None:
    network, images = nn.Sequential(conv, norm, nn.Tanh()).eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    for tensor in norm.state_dict().values():  # frozen ones know of no images
        if tensor.dim():
            nn.init.uniform_(tensor, 0.5, 1.5)
    folded, steps = fold_batch_norms(network, images)
    assert steps == [Step("1", why_not)]
    assert (type(folded[1]) is type(norm)) == bool(why_not)
    torch.testing.assert_close(folded(images), network(images))


def test_what_a_network_noted_on_a_norm_moves_along() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    network[1].reads = -1
    folded, _ = fold_batch_norms(network, torch.randn(2, 3, 9, 9))
    assert isinstance(folded[1], nn.Identity)
    assert folded[1].reads == -1


def test_a_forward_put_in_the_place_of_a_layer_s_still_runs() -> None:
    images = torch.randn(2, 3, 9, 9)
    for i, reason in enumerate(("reads a Conv2d", "is a BatchNorm2d")):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        network[i].forward = lambda x: x.repeat(1, 8 // x.shape[1] + 1, 1, 1)[:, :8] * 2
        folded, steps = fold_batch_norms(network, images)
        assert steps == [Step("1", f"{reason}, whose forward may differ from torch's")]
        torch.testing.assert_close(folded(images), network(images))


@pytest.mark.parametrize("name", ["test_pix_resnet", "tiny_pix_resnet", "test_resnet", "test_efficientnet"])
def test_folding_changes_no_output(name: str) -> None:
    network, images = timm.create_model(name).eval().double(), torch.randn(2, 3, 32, 32).double()
    settle_batch_norms(network, images)
    expected = network(images)
    folded, steps = fold_batch_norms(network, images)
    assert not norms(folded)
    assert [step.name for step in steps] == norms(network)
    assert not any(step.why_not for step in steps)
    assert expected.std() > 0.01
    torch.testing.assert_close(folded(images), expected)
    assert next(fold_batch_norms(network.float(), images)[0].parameters()).dtype == torch.float32


def test_a_network_whose_first_parameter_is_an_index() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    network.register_parameter("index", nn.Parameter(torch.arange(3), requires_grad=False))
    folded, _ = fold_batch_norms(network, torch.randn(1, 3, 4, 4))
    assert [value.dtype for value in folded.parameters()] == [torch.int64, torch.float32, torch.float32]


class Mixed(nn.Module):
    """A body in bfloat16 and a head in float32, with one PReLU each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), BatchNormAct2d(8, act_layer=nn.PReLU)).bfloat16()
        self.head = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.PReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x.to(self.body[0].weight.dtype))
        return self.head(x.to(self.head[0].weight.dtype))


def test_each_parameter_keeps_its_dtype() -> None:
    images = torch.randn(2, 3, 9, 9)
    folded, steps = fold_batch_norms(Mixed().eval(), images)
    assert not any(step.why_not for step in steps)
    assert {value.dtype for value in folded.body.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in folded.head.parameters()} == {torch.float32}
    assert len(list(folded.parameters())) == 6
    assert folded(images).dtype == torch.float32


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.norm(self.conv(x))
        masked = y.masked_fill(torch.ones_like(y, dtype=torch.bool).triu(), -float("inf"))
        return {
            **{"scale": 3, "nothing": None, "positive": y > 0, "class": y.argmax(1), "empty": y[:0]},
            **{"masked": masked, "root": y.sqrt(), "all masked": torch.full_like(y, float("inf")), "float": y.float()},
        }


def test_outputs_of_any_kind() -> None:
    network, images = Outputs().eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    expected = network(images)
    assert expected["root"].isnan().any()
    folded, steps = fold_batch_norms(network, images)
    assert steps == [Step("norm")]
    torch.testing.assert_close(folded(images)["masked"], expected["masked"])


class Maps(nn.Module):
    """Returns the convolution's output beside the norm's, in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        y = self.conv(x)
        return SimpleNamespace(before=y, after=self.norm(y))


def test_a_network_whose_outputs_nobody_sees_stays() -> None:
    network, images = Maps().eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    folded, steps = fold_batch_norms(network, images)
    reason = "stands in a network that returns a SimpleNamespace, in which outputs can't be compared"
    assert steps == [Step("norm", reason)]
    torch.testing.assert_close(vars(folded(images)), vars(network(images)), rtol=0, atol=0)


class Remembers(nn.Module):
    """Keeps a table of what it made of a parameter, as attention in timm's LeViT and EfficientFormer does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.biases, self.table = nn.Parameter(torch.randn(8, 1, 1)), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.table:
            self.table["biases"] = 2 * self.biases
        return torch.einsum("bchw,cij->bchw", self.norm(self.conv(x)), self.table["biases"])


def test_what_a_network_remembers_has_its_dtype() -> None:
    network, images = Remembers().eval(), torch.randn(2, 3, 9, 9)
    folded, steps = fold_batch_norms(network, images)
    assert steps == [Step("norm")]
    assert network.table == folded.table == {}
    assert all(parameter.requires_grad for parameter in folded.parameters())
    torch.testing.assert_close(folded(images), network(images))


def test_the_copy_of_a_feature_extractor_is_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 4, 1), nn.Dropout()))
    network, images = create_feature_extractor(network, {"1": "map", "2.0": "last"}).eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, 1 + torch.randn(4, 3, 9, 9))
    folded, steps = fold_batch_norms(network, images)
    assert steps == [Step("1")]
    assert not folded.training
    torch.testing.assert_close(folded(images), network(images))


def test_a_network_that_can_t_be_copied_says_how() -> None:
    network = prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", 0.5).eval()
    with pytest.raises(ValueError, match=r"Conv2d can't be copied, .*; run it once under torch.no_grad\(\)$"):
        fold_batch_norms(network, torch.randn(2, 3, 9, 9))


class InFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.float()))


def test_a_network_that_can_t_run_in_float64_stays() -> None:
    network, images = InFloat32().eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    folded, steps = fold_batch_norms(network, images)
    assert steps[0].why_not.startswith("stands in a network that can't run in float64: Input type (float) and bias")
    assert folded is not network
    torch.testing.assert_close(folded(images), network(images), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 4"):
        fold_batch_norms(network, torch.randn(2, 4, 9, 9))


class ReadsItsNorm(InFloat32):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.to(self.norm.weight.dtype)))


def test_a_network_that_asks_its_norm_for_more_than_its_output_stays() -> None:
    network, images = ReadsItsNorm().eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    folded, steps = fold_batch_norms(network, images)
    reason = "stands in a network that can't run without its BatchNorms: 'Identity' object has no attribute 'weight'"
    assert steps == [Step("norm", reason)]
    torch.testing.assert_close(folded(images), network(images), rtol=0, atol=0)


class Draws(InFloat32):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(nn.functional.dropout(x)))  # drops in evaluation mode too


def test_a_network_that_draws_is_folded() -> None:
    network, images = Draws().eval(), torch.randn(2, 3, 9, 9)
    settle_batch_norms(network, images)
    assert fold_batch_norms(network, images)[1] == [Step("norm")]


def test_a_wrong_fold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "fuse_conv_bn_weights", lambda weight, bias, mean, *norm: (weight, 0 * mean))
    network, images = timm.create_model("tiny_resnet").eval(), torch.randn(2, 3, 8, 8)
    settle_batch_norms(network, images)
    with pytest.raises(ValueError, match="folding its BatchNorms changed an output of up to"):
        fold_batch_norms(network, images)
