from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor, get_graph_node_names

import downmix
from downmix.models._networks import registered
from downmix.models.pix_mobilenetv2 import PiXMobileNetV2
from downmix.models.pix_resnet import SqueezeBottleneck

from .test_soft_pool import BASELINES

SQUEEZED_RESNETS = (
    *("pix_resnet50", "pix_resnet101", "pix_resnet152"),
    *("resnet50_r8", "pix_resnet50_r8", "pix_seresnet50"),
    *("dwp_resnet50", "groupconv_resnet50", "fbs_resnet50"),
    *("pix_resnet50_down2", "pix_resnet50_down4"),
)
PRUNED_RESNETS = (
    *("pix_resnet18_prune1", "pix_resnet18_prune2", "pix_resnet18_prune4"),
    *("fbs_resnet18_d100", "fbs_resnet18_d50", "fbs_resnet18_d25"),
)
SMALL_RESNETS = ("resnet29_small", "pix_resnet29_small", "resnet50_cifar", "pix_resnet50_cifar")
SMALL = (*SMALL_RESNETS, "vgg_small")
VGGS = (
    *("vgg16_gap", "vgg16_1x1_r2", "vgg16_1x1_r4", "pix_vgg16_1x1_r2", "pix_vgg16_1x1_r4"),
    *("pix_vgg16_down2", "pix_vgg16_down4"),
    *("pix_vgg16_prune1", "pix_vgg16_prune2", "pix_vgg16_prune4"),
    *("fbs_vgg16_d100", "fbs_vgg16_d50", "fbs_vgg16_d25"),
)
MOBILENETS = (
    *("pix_mobilenetv2_100", "pix_mobilenetv2_100_bnpre", "pix_mobilenetv2_100_bnpost"),
    *("mobilenetv2_100_full", "pix_mobilenetv2_100_full"),
    *("pix_mobilenetv2_100_full_bnpre", "pix_mobilenetv2_100_full_bnpost"),
)
TINY = ("test_pix_resnet", "test_pix_resnet_prune", "test_pix_vgg", "test_pix_mobilenetv2")
RESNETS = (*SQUEEZED_RESNETS, *PRUNED_RESNETS, *SMALL_RESNETS, "test_pix_resnet", "test_pix_resnet_prune")
ALL = (*SQUEEZED_RESNETS, *PRUNED_RESNETS, *SMALL, *VGGS, *MOBILENETS, *TINY)
# Built narrow, these are others over again: pix_resnet50, pix_resnet18_prune2 and pix_mobilenetv2_100.
TWINS = ("pix_resnet101", "pix_resnet152", "test_pix_resnet", "test_pix_resnet_prune", "test_pix_mobilenetv2")
NARROW = [name for name in ALL if name not in TWINS]
PUBLISHED = {f"PiXResNet{depth}_cs": f"pix_resnet{depth}" for depth in (50, 101, 152)}


pytestmark = pytest.mark.usefixtures("without_kernels")


def narrow(name: str, **options: Any) -> Any:
    """A network as registered, but so narrow that a test can train it."""
    if name in RESNETS:
        options |= {"zero_init_last": False}  # else most gradients are zero
    if name in (*SQUEEZED_RESNETS, *PRUNED_RESNETS, "resnet50_cifar", "pix_resnet50_cifar"):
        options |= {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
    elif name in VGGS:
        options |= {"stages": ((16, 16), (16, 16), (32, 32), (64, 64), (64, 64))}
    elif name in MOBILENETS:
        options |= {"width": 0.25, "num_features": 64}
    return timm.create_model(name, **options)


def test_all_names_are_registered() -> None:
    assert set(registered()) == {*ALL, *(f"softpool_{name}" for name in BASELINES)}


@pytest.mark.parametrize("name", NARROW)
def test_forward_and_a_gradient_for_every_parameter(name: str) -> None:
    model = narrow(name, num_classes=10).train()
    output = model(torch.randn(4, 3, 64, 64))
    assert output.shape == (4, 10)
    output.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ALL)
def test_what_timm_s_users_expect(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.5, global_pool="max").eval()
        x = torch.randn(2, 1, 64, 64)
        assert model(x).shape == (2, 7)
        assert model.drop_rate == 0.5
        assert isinstance(model.get_submodule(model.default_cfg["first_conv"]), nn.Conv2d)
        assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
        assert (model.head.global_pool if "vgg" in name else model.global_pool).pool_type == "max"
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        features, intermediates = model.forward_intermediates(x, indices=3)
        assert features.shape == model.forward_features(x).shape
        assert [m.shape[1] for m in intermediates] == [info["num_chs"] for info in model.feature_info[-3:]]


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *((name, 32) for name in ALL),
        *((name, stride) for name in (*SQUEEZED_RESNETS, *PRUNED_RESNETS, *MOBILENETS) for stride in (8, 16)),
    ],
)
def test_features_only(name: str, output_stride: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
        features = model(torch.randn(1, 3, 64, 64))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(features) == (4 if name == "vgg_small" else 6 if "vgg" in name else 5)
    assert [f.shape[1] for f in features] == channels
    assert [64 // f.shape[2] for f in features] == reductions
    if name not in SMALL:
        assert max(reductions) == output_stride


@pytest.mark.parametrize("name", ["pix_resnet50", "softpool_resnet18"])
def test_graphs_of_torch_fx_hold_our_layers(name: str) -> None:
    model, images = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    traced = create_feature_extractor(
        model, {"layer2": "map"}, tracer_kwargs={"leaf_modules": timm.layers.get_notrace_modules()}
    )
    expected = model.forward_intermediates(images, indices=[2], intermediates_only=True)[0]
    torch.testing.assert_close(traced(images)["map"], expected)
    of_timm = timm.create_model(name, features_only=True, feature_cls="fx")
    assert [f.shape[2] for f in of_timm(images)] == [32, 16, 8, 4, 2]


def test_torch_fx_sees_blocks_and_their_names() -> None:
    pix, plain = narrow("pix_resnet50").eval(), narrow("resnet50_r8").eval()
    leaves = timm.layers.get_notrace_modules()
    names = [get_graph_node_names(network, {"leaf_modules": leaves})[1] for network in (pix, plain)]
    assert names[0] == names[1]
    graph = NodePathTracer(leaf_modules=[SqueezeBottleneck]).trace(pix)
    assert "layer1.0" in {node.target for node in graph.nodes}


@pytest.mark.parametrize("name", NARROW)
def test_channels_last_gives_the_same(name: str) -> None:
    model = narrow(name).eval().double()
    x = torch.randn(2, 3, 32, 32).double()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", TINY)
def test_checkpointing_changes_the_memory_only(name: str) -> None:
    model, x = narrow(name).double().eval(), torch.randn(2, 3, 64, 64).double()
    gradients, saved = [], []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved[-1] += tensor.numel()
        return tensor

    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(x).square().sum()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert saved[1] < 0.85 * saved[0]


@pytest.mark.parametrize("name", NARROW)
def test_export_keeps_the_outputs_at_any_batch_size(name: str) -> None:
    model = narrow(name).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_names_mean_ours(published: str) -> None:
    with torch.device("meta"), pytest.warns(UserWarning, match=f"{published} to current {PUBLISHED[published]}"):
        model = timm.create_model(published, num_classes=3)
    assert model.num_classes == 3
    assert published not in timm.list_models("*")


def test_reductions_of_resnets_are_those_of_the_papers() -> None:
    def reductions(name: str) -> list[int]:
        model = timm.create_model(name)
        return [block.conv1.reduction for i in (1, 2, 3, 4) for block in getattr(model, f"layer{i}")]

    with torch.device("meta"):
        assert reductions("pix_resnet50") == [1, 4, 4, 2, 4, 4, 4, 2, 4, 4, 4, 4, 4, 2, 4, 4]
        assert reductions("pix_resnet50_r8") == [2, 8, 8, 4, 8, 8, 8, 4, 8, 8, 8, 8, 8, 4, 8, 8]


def pix_layers(name: str) -> list[tuple[int, int]]:
    with torch.device("meta"):
        return [(m.in_channels, m.reduction) for m in timm.create_model(name).modules() if isinstance(m, downmix.PiX)]


def test_where_pix_stands() -> None:
    assert pix_layers("pix_mobilenetv2_100") == [
        (6 * c, 6) for c, n in ((24, 1), (32, 2), (64, 3), (96, 2), (160, 2)) for _ in range(n)
    ]
    assert pix_layers("pix_vgg16_1x1_r4") == [(c, 4) for c in (64, 128, 256, 256, 512, 512, 512, 512)]
    before = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512]
    assert pix_layers("pix_vgg16_prune2") == [(c, 2) for c in before]
    assert pix_layers("pix_vgg16_down2") == [(c, 2) for c in (64, *(c // 2 for c in before[1:]))]
    assert pix_layers("pix_resnet50_down2") == [
        (c, 2) for c, n in ((64, 3), (128, 4), (256, 6), (512, 3)) for _ in range(n)
    ]
    after_stem = [64] * 4 + [128] * 4 + [256] * 4 + [512] * 3
    assert pix_layers("pix_resnet18_prune4") == [(c, 4) for c in after_stem]


def test_narrowed_convolutions_read_and_give_what_the_mode_says() -> None:
    with torch.device("meta"):
        block = timm.create_model("pix_resnet50_down4").layer3[1]
        assert (block.conv1.out_channels, block.conv2.conv.in_channels, block.conv2.conv.out_channels) == (256, 64, 64)
        assert (block.conv3.in_channels, block.conv3.out_channels) == (64, 1024)
        block = timm.create_model("pix_resnet18_prune4").layer3[0]
        assert (block.conv1.conv.in_channels, block.conv1.conv.out_channels) == (32, 256)
        assert (block.conv1.conv.stride, block.conv1.conv.padding) == ((2, 2), (1, 1))
        features = timm.create_model("pix_vgg16_down2").features
        widths = [(m.conv.in_channels, m.conv.out_channels) for m in features if not isinstance(m, nn.MaxPool2d)]
        assert widths[:4] == [(3, 64), (32, 32), (16, 64), (32, 64)]


def test_mobilenet_s_norms_stand_before_or_behind_pix() -> None:
    with torch.device("meta"):
        for norm, kinds in (("", (nn.Identity, nn.Identity)), ("_bnpre", (nn.BatchNorm2d, nn.Identity))):
            block = timm.create_model(f"pix_mobilenetv2_100{norm}").blocks[2][1]
            assert (type(block.se), type(block.bn3)) == kinds
        block = timm.create_model("pix_mobilenetv2_100_bnpost").blocks[2][1]
        assert isinstance(block.bn3, nn.BatchNorm2d)
        assert timm.create_model("mobilenetv2_100_full").blocks[2][1].conv_dw.groups == 1


def test_weights_of_the_plain_network_fit_but_for_the_squeeze_s_norm() -> None:
    plain, pix = timm.create_model("resnet29_small"), timm.create_model("pix_resnet29_small")
    missing, unexpected = pix.load_state_dict(plain.state_dict(), strict=False)
    assert missing == []
    assert {key.split(".")[2] for key in unexpected} == {"bn1"}
    with torch.device("meta"):
        plain, pix = timm.create_model("mobilenetv2_100"), timm.create_model("pix_mobilenetv2_100_bnpost")
    assert plain.state_dict().keys() == pix.state_dict().keys()


def test_the_squeeze_has_neither_norm_nor_activation() -> None:
    block = timm.create_model("pix_resnet29_small").layer2[0]
    assert isinstance(block.conv1, downmix.PiX)
    assert isinstance(block.bn1, nn.Identity)
    assert isinstance(block.act1, nn.Identity)


def test_a_squeeze_takes_options() -> None:
    block_args = {"squeeze": "pix", "squeeze_args": {"gate": "tanh", "norm": True}}
    squeeze = timm.create_model("pix_resnet29_small", block_args=block_args).layer2[0].conv1
    assert squeeze.gate == "tanh"
    assert isinstance(squeeze.norm, nn.BatchNorm1d)


def test_se_stays_after_the_last_norm_with_ratio_16() -> None:
    with torch.device("meta"):
        se = timm.create_model("pix_seresnet50").layer1[0].se
    assert (se.fc1.in_channels, se.fc1.out_channels) == (256, 16)


def test_what_can_t_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="pix squeezes by an integer ratio, got 64 channels to 24"):
        timm.create_model("pix_resnet29_small", channels=(24, 32, 64, 128))
    with pytest.raises(ValueError, match="reduction must divide base_width, got 3 and 64"):
        timm.create_model("pix_resnet50_down2", block_args={"reduction": 3})
    with pytest.raises(ValueError, match="norm must be one of 'none', 'pre', 'post', got 'both'"):
        PiXMobileNetV2(norm="both")
    with pytest.raises(ValueError, match="a VGG has the output stride 32, got 8"):
        timm.create_model("vgg16_gap", output_stride=8)
