"""ONNX Runtime and OpenVINO give PyTorch's outputs: each pool, squeeze and gate, and networks of each family."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import Tensor, nn

import downmix
from downmix.export import load, regroup, write
from downmix.fuse import fold_batch_norms
from downmix.models._networks import create_network
from downmix.tools._bench_networks import settle_batch_norms

pytestmark = pytest.mark.usefixtures("without_kernels")


class Together(nn.Module):
    """Several modules that read the same input, in one file, as the time is that of exporting it."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts.values())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)


def check(parts: dict[str, nn.Module], exported: nn.Module, inputs: list[Tensor], folder: Path) -> None:
    """Writes ``exported`` with a dynamic batch, and compares what it gives with the outputs of the parts.

    Errors are relative to the largest output, and may be 1e-5, or twice PyTorch's own in float32 where that is more.
    """
    write(exported, inputs[0], folder / "a.onnx", "onnx")
    model = onnx.load(folder / "a.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    openvino.save_model(openvino.convert_model(folder / "a.onnx"), folder / "a.xml", compress_to_fp16=False)
    runs = {file: load(folder / file, threads=1).run for file in ("a.onnx", "a.xml")}
    faults = []
    for x in inputs:
        own, exact = (
            outputs(parts, x),
            outputs({name: deepcopy(part).double() for name, part in parts.items()}, x.double()),
        )
        ends = np.cumsum([y.shape[1] for y in exact])[:-1]
        for file, run in runs.items():
            for name, y, z, found in zip(parts, exact, own, np.split(run(x.numpy()), ends, axis=1), strict=True):
                allowed = max(1e-5, 2 * abs(z - y).max() / abs(y).max())
                error = abs(found - y).max() / abs(y).max()
                if not error <= allowed:
                    faults.append(f"{file}, {name}, {list(x.shape)}, up to {x.max():.0f}: {error:.1e} > {allowed:.1e}")
    assert faults == []


def outputs(parts: dict[str, nn.Module], x: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [part(x).flatten(1).numpy() for part in parts.values()]


class Shaped(nn.Sequential):
    """A pool of one or three dimensions, on the same map as the others."""

    def __init__(self, dims: int, pool: nn.Module):
        super().__init__({1: nn.Flatten(2), 3: nn.Unflatten(1, (4, 4))}[dims], pool)


def pools() -> dict[str, nn.Module]:
    """On maps of 16 channels."""
    window: Any = {"kernel_size": 3, "stride": 2, "padding": 1}
    parts: dict[str, nn.Module] = {
        name: downmix.create_pool(name, **window) for name in ("max", "avg", "soft", "power")
    }
    parts |= {name: downmix.create_pool(name, **window, in_channels=16) for name in ("lip",)}
    parts |= {"mixed": downmix.create_pool("mixed", **window), "lp": downmix.create_pool("lp", 2, ceil_mode=True)}
    parts |= {"stochastic": nn.Sequential(nn.ReLU(), downmix.create_pool("stochastic", **window))}
    parts |= {"s3": downmix.create_pool("s3", 2), "soft_global": downmix.AdaptiveSoftPool2d(1)}
    parts |= {"soft_uneven": downmix.SoftPool2d((3, 2), (2, 1), (1, 0), dilation=(1, 2), ceil_mode=True)}
    parts |= {"soft1d": Shaped(1, downmix.SoftPool1d(3, 2, 1)), "soft3d": Shaped(3, downmix.SoftPool3d(3, 2, 1))}
    parts |= {
        "soft_adaptive1d": Shaped(1, downmix.AdaptiveSoftPool1d(7)),
        "soft_adaptive": downmix.AdaptiveSoftPool2d(3),
    }
    parts |= {"soft_adaptive3d": Shaped(3, downmix.AdaptiveSoftPool3d(3))}
    parts |= {f"{name}1d": Shaped(1, downmix.create_pool(name, 2, dims=1)) for name in ("power", "s3")}
    parts |= {f"{name}3d": Shaped(3, downmix.create_pool(name, 2, dims=3)) for name in ("power", "mixed")}
    parts |= {"lip3d": Shaped(3, downmix.create_pool("lip", 2, dims=3, in_channels=4))}
    parts |= {"lip_bottleneck": downmix.create_pool("lip", 2, in_channels=16, logits="bottleneck")}
    for parameter in nn.ModuleDict(parts).parameters():  # LIP starts as average pooling, and mixed in the middle
        nn.init.uniform_(parameter, -0.5, 0.5)
    return parts


def test_every_pool(tmp_path: Path) -> None:
    """At values around a thousand too, where exponentials overflow."""
    parts = nn.ModuleDict(pools()).eval()
    inputs = [torch.randn(2, 16, 9, 7), torch.randn(1, 16, 9, 7), 1000 * torch.randn(5, 16, 9, 7)]
    check(dict(parts), Together(dict(parts)).eval(), inputs, tmp_path)


def gates() -> dict[str, nn.Module]:
    """All that reads and changes channels, on maps of 16."""
    parts: dict[str, nn.Module] = {word: downmix.create_squeeze(word, 16, 4) for word in ("pix", "dwp", "fbs", "conv")}
    parts |= {"group": downmix.create_squeeze("group", 16, 2), "mean": downmix.ChannelPool(4, mode="mean")}
    parts |= {"overlapping": downmix.ChannelPool(5, 3), "short_group": downmix.PiX(16, 3), "gate": downmix.PiX(16, 1)}
    parts |= {"weighted": downmix.PiX(16, 4, fusion="weighted"), "tanh": downmix.PiX(16, 2, gate="tanh", norm=True)}
    parts |= {
        "min": downmix.PiX(16, 4, operator="min"),
        "se": downmix.SqueezeExcite(16, 4),
        "cbam": downmix.CBAM(16, 4),
    }
    fbs = downmix.FBSConv2d(16, 64, 3, density=0.5)
    nn.init.constant_(fbs.saliency.linear.bias, -0.1)  # most are zero then, and the first of equal ones stay
    nn.init.uniform_(fbs.bias, 0.5, 1.5)
    return parts | {"fbs_conv": fbs}


def test_every_squeeze_and_gate(tmp_path: Path) -> None:
    parts = nn.ModuleDict(gates()).eval()
    inputs = [torch.randn(batch, 16, 13, 10) for batch in (2, 1, 5)]
    check(dict(parts), Together(dict(parts)).eval(), inputs, tmp_path)


SMALL: dict[str, dict[str, Any]] = {  # what the word in a name makes of the network; those for tests are small
    "test_": {},
    "vgg_small": {},
    "mobilenet": {},
    "resnet": {"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8)},
    "densenet": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "vgg": {"stages": ((8, 8), (8, 16))},
}
FAMILIES = {
    "resnet": ("test_pix_resnet", "pix_seresnet50", "dwp_resnet50", "groupconv_resnet50", "pix_resnet50_down2"),
    "fbs": ("fbs_resnet50", "fbs_resnet18_d50", "fbs_vgg16_d25", "test_pix_resnet_prune"),
    "vgg": ("test_pix_vgg", "vgg16_1x1_r4", "vgg_small"),
    "mobilenet": ("test_pix_mobilenetv2",),
    "softpool": ("softpool_resnet18", "softpool_densenet121"),
    "converted": ("vgg_small:pool=soft", "resnet29_small:squeeze=pix"),
}


def create(name: str) -> nn.Module:
    return create_network(name, num_classes=7, **next(options for word, options in SMALL.items() if word in name))


@pytest.mark.parametrize("family", FAMILIES)
def test_networks(family: str, tmp_path: Path) -> None:
    """On an odd size, with BatchNorms folded and PiX regrouped, as `downmix export` does."""
    parts = {name: create(name) for name in FAMILIES[family]}
    together, x = Together(parts).eval(), torch.randn(2, 3, 37, 45)
    settle_batch_norms(together, torch.randn(8, 3, 37, 45))
    exported, report = regroup(fold_batch_norms(together, x)[0], x)
    assert not any(layer.why_not for layer in report)
    check(parts, exported, [x, torch.randn(1, 3, 37, 45), torch.randn(5, 3, 37, 45)], tmp_path)
