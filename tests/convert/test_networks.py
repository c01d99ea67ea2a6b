"""convert on networks that others wrote, of every family we know users to have."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from downmix import PiX, convert, convert_like

pytestmark = pytest.mark.usefixtures("without_kernels")

# Name, and how many squeezes and pools go. A squeeze has an integer ratio of 2 or more and is no part of
# squeeze-and-excite, a head or a projection.
TIMM = {
    "resnet18": (0, 1),
    "resnet50d": (15, 4),
    "seresnet50": (15, 1),
    "resnext50_32x4d": (12, 1),
    "resnetv2_50": (15, 1),
    "wide_resnet50_2": (12, 1),
    "res2net50_26w_4s": (0, 5),
    "regnetx_002": (0, 0),
    "densenet121": (15, 4),
    "inception_v3": (22, 2),
    "inception_v4": (25, 14),
    "mobilenetv2_100": (15, 0),
    "mobilenetv3_large_100": (7, 0),
    "efficientnet_b0": (12, 0),
    "vgg16_bn": (0, 5),
    "convnext_tiny": (0, 0),
    "convnext_atto": (0, 0),
    "dla34": (3, 6),
    "cspdarknet53": (2, 0),
    "nf_resnet50": (0, 4),
    "vit_tiny_patch16_224": (0, 0),
}
TORCHVISION = {
    "resnet50": (15, 1),
    "resnext50_32x4d": (12, 1),
    "densenet121": (15, 4),
    "googlenet": (17, 13),
    "inception_v3": (22, 2),
    "mobilenet_v2": (15, 0),
    "mobilenet_v3_small": (7, 0),
    "efficientnet_b0": (12, 0),
    "shufflenet_v2_x1_0": (0, 1),
    "squeezenet1_1": (7, 3),
    "vgg11": (0, 5),
    "regnet_y_400mf": (0, 0),
    "convnext_tiny": (0, 0),
}


def check(network: nn.Module, size: int, squeezes: int, pools: int) -> None:
    x = torch.zeros(2, 3, size, size, device="meta")
    converted, report = convert(network, pool="soft", example_input=x)
    kinds = [isinstance(converted.get_submodule(replaced.name), PiX) for replaced in report.replaced]
    assert (sum(kinds), len(kinds) - sum(kinds)) == (squeezes, pools), report
    assert all(left.reason for left in report.left)
    assert (report.before == report.after) == (not kinds)
    assert ("nothing to convert" in str(report)) == (not kinds)

    expected, outputs = (tree_leaves(model.eval()(x)) for model in (network, converted))
    assert [y.shape for y in outputs] == [y.shape for y in expected]
    rebuilt = convert_like(network, report.config)
    rebuilt.load_state_dict(converted.state_dict(), assign=True)
    assert str(rebuilt) == str(converted)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    check(network, {"vit_tiny_patch16_224": 224}.get(name, 96), *TIMM[name])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = getattr(torchvision.models, name)(**options).to("meta")
    check(network, 96, *TORCHVISION[name])


def test_a_detection_backbone() -> None:
    network = resnet_fpn_backbone(backbone_name="resnet50", weights=None).to("meta")
    check(network, 96, 15, 1)


def test_a_whole_detector() -> None:
    detector = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64
    )
    converted, report = convert(detector.eval(), example_input=([torch.rand(3, 64, 64)],), where="backbone.body.*")
    assert len(report.replaced) == 15
    assert report.after.macs is None
    with torch.inference_mode():
        assert set(converted([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}
