"""Exported networks give PyTorch's outputs in each runtime, for any batch and size, with their facts inside."""

import gc
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

import downmix
from downmix.export import float_nodes, load, quantise, regroup, write

pytestmark = pytest.mark.usefixtures("without_kernels")


def check(network: nn.Module, path: Path, shapes: list[tuple[int, ...]]) -> None:
    exported = load(path, threads=1)
    assert exported.metadata["model"] == "a test"
    for shape in shapes:
        images = torch.randn(shape)
        with torch.no_grad():
            expected = network(images).numpy()
        np.testing.assert_allclose(exported.run(images.numpy()), expected, rtol=0, atol=1e-5 * abs(expected).max())


def skip_if_pools_hold_sizes() -> None:
    """Torch 2.11's own pools leave torch.export a guard on the remainder of a size by their stride."""
    size = torch.export.Dim.AUTO
    graph = torch.export.export(nn.MaxPool2d(2), (torch.zeros(1, 1, 4, 4),), dynamic_shapes=({2: size},)).module()
    try:
        graph(torch.zeros(1, 1, 5, 4))
    except AssertionError:
        pytest.skip(f"torch {torch.__version__} lets no torch.export of its own pools hold for sizes of any remainder")


@pytest.mark.parametrize(("format", "file"), [("onnx", "a.onnx"), ("torch-export", "a.pt2")])
def test_odd_sizes(format: str, file: str, tmp_path: Path) -> None:
    network = timm.create_model("pix_resnet50", layers=(1, 1, 0, 0), channels=(8, 8, 8, 8), num_classes=7).eval()
    regrouped, _ = regroup(network, torch.randn(2, 3, 64, 64))
    options: dict[str, Any] = {"dynamic": ("batch", "size"), "metadata": {"model": "a test"}}
    write(regrouped, torch.randn(2, 3, 64, 64), tmp_path / file, format, **options)
    check(network, tmp_path / file, [(2, 3, 64, 64), (1, 3, 36, 64)])
    if format == "torch-export":
        skip_if_pools_hold_sizes()
    check(network, tmp_path / file, [(1, 3, 33, 64), (3, 3, 71, 97)])


@pytest.mark.parametrize(("kernel_size", "padding"), [(2, 0), (3, 1)])
def test_s3_pools_of_odd_sizes(kernel_size: int, padding: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), downmix.S3Pool2d(kernel_size, padding=padding)).eval()
    options: dict[str, Any] = {"dynamic": ("batch", "size"), "metadata": {"model": "a test"}}
    write(network, torch.randn(2, 3, 12, 13), tmp_path / "a.pt2", "torch-export", **options)
    skip_if_pools_hold_sizes()
    check(network, tmp_path / "a.pt2", [(2, 3, 12, 13), (1, 3, 13, 12), (3, 3, 16, 16), (3, 3, 17, 17)])


@pytest.mark.parametrize("pool", [downmix.SoftPool2d, downmix.PowerAvgPool2d, downmix.StochasticPool2d])
def test_no_window_is_transposed(pool: type[nn.Module], tmp_path: Path) -> None:
    write(pool(3, 2, 1).eval(), torch.randn(2, 3, 9, 9), tmp_path / "a.onnx", "onnx", dynamic=("batch", "size"))
    kinds = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "Slice" in kinds
    assert "Transpose" not in kinds  # that of windows takes ONNX Runtime longer than all else


class Pools(nn.Sequential):
    def __init__(self) -> None:
        pools = (downmix.SoftPool2d(3, 2, padding=1), downmix.ChannelPool(2), downmix.PiX(4, 3))
        super().__init__(nn.Conv2d(3, 8, 3), *pools, downmix.AdaptiveSoftPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("format", "file"), [("onnx", "a.onnx"), ("openvino", "a.xml"), ("torch-export", "a.pt2")])
def test_pools_and_a_pix_that_stays(format: str, file: str, tmp_path: Path) -> None:
    network = Pools().eval()
    images = torch.randn(2, 3, 21, 22)
    write(network, images, tmp_path / file, format, metadata={"model": "a test"})
    check(network, tmp_path / file, [(2, 3, 21, 22), (5, 3, 21, 22)])


@pytest.mark.parametrize("word", ["soft", "power", "stochastic", "lip", "mixed", "s3"])
def test_rounded_up_windows_at_any_size(word: str, tmp_path: Path) -> None:
    """What a last window may reach beyond the map was traced as a number, and the graph right for such sizes alone."""
    window = (
        {"kernel_size": 3, "ceil_mode": True} if word == "s3" else {"kernel_size": 3, "stride": 2, "ceil_mode": True}
    )
    dilated = {"dilation": 2} if word == "mixed" else {}
    pool = downmix.create_pool(word, **window, **dilated, **({"in_channels": 4} if word == "lip" else {}))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), pool).eval()
    for file in ("a.onnx", "a.pt2"):
        format = "onnx" if file == "a.onnx" else "torch-export"
        options: dict[str, Any] = {"dynamic": ("batch", "size"), "metadata": {"model": "a test"}}
        write(network, torch.randn(2, 3, 16, 16), tmp_path / file, format, **options)
        if word == "s3" and format == "torch-export":  # it ends in torch's own avg_pool2d
            skip_if_pools_hold_sizes()
        check(network, tmp_path / file, [(1, 3, 17, 15), (3, 3, 16, 18), (1, 3, 19, 19)])


@pytest.mark.parametrize("word", ["soft", "power", "stochastic", "lip"])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_sizes_that_a_caller_named(word: str, ceil_mode: bool) -> None:
    """Where windows ended was once compared to the map's size, by which torch.export takes no range of sizes."""
    pool = downmix.create_pool(word, 3, 2, 1, ceil_mode=ceil_mode, **({"in_channels": 4} if word == "lip" else {}))
    sizes = {2: torch.export.Dim("height", min=5, max=64), 3: torch.export.Dim("width", min=5, max=64)}
    program = torch.export.export(pool.eval(), (torch.rand(2, 4, 16, 16),), dynamic_shapes=(sizes,)).module()
    for size in ((5, 64), (17, 18), (32, 7)):
        x = torch.rand(2, 4, *size)
        torch.testing.assert_close(program(x), pool(x))


def test_adaptive_windows_at_any_size_are_refused(tmp_path: Path) -> None:
    network, images = nn.Sequential(downmix.AdaptiveSoftPool2d((4, 1))).eval(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"no graph of output_size=\(4, 1\) holds for all; export with a fixed size"):
        write(network, images, tmp_path / "a.onnx", "onnx", dynamic=("batch", "size"))
    write(network, images, tmp_path / "a.onnx", "onnx", dynamic=("batch",))


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    network, images = nn.Conv2d(3, 4, 1).eval(), torch.zeros(2, 3, 4, 4)
    write(network, images, f"{tmp_path}/a.onnx", "onnx")
    assert load(f"{tmp_path}/a.onnx").run(images.numpy()).shape == (2, 4, 4, 4)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    network, images = nn.Conv2d(3, 4, 1).eval(), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"ends in \.onnx, got a\.xml"):
        write(network, images, tmp_path / "a.xml", "onnx")
    with pytest.raises(ValueError, match="'onnx', 'openvino'"):
        write(network, images, tmp_path / "a.xml", "tflite")
    with pytest.raises(ValueError, match="'batch', 'size'"):
        write(network, images, tmp_path / "a.onnx", "onnx", dynamic=["channels"])
    with pytest.raises(
        ValueError, match="traced with 2 images or more, got 1; pass more, or a dynamic without 'batch'"
    ):
        write(network, images[:1], tmp_path / "a.onnx", "onnx")
    with pytest.raises(ValueError, match=r"call network\.eval\(\) before"):
        write(nn.Sequential(network, nn.Dropout()), images, tmp_path / "a.onnx", "onnx")
    with pytest.raises(TypeError, match=r"write takes a network, an nn\.Module, got Tensor"):
        write(images, network, tmp_path / "a.onnx", "onnx")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="write takes one batch of images, a tensor, got tuple"):
        write(network, (images,), tmp_path / "a.onnx", "onnx")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "none.onnx")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"\.onnx, \.xml or \.pt2"):
        load(tmp_path / "a.txt")
    for damaged in (tmp_path / "a.onnx", tmp_path / "a.xml", tmp_path / "a.pt2"):
        damaged.write_text("<junk")
        with pytest.raises(ValueError, match=f"{damaged} can't be read as an exported network: "):
            load(damaged)


def test_a_signal_after_openvino_s_networks_have_gone(tmp_path: Path) -> None:
    """The process died of it where the first of two took away the stack that the second then left for handlers."""
    write(nn.Conv2d(3, 4, 1).eval(), torch.zeros(2, 3, 4, 4), tmp_path / "a.xml", "openvino")
    first, second = load(tmp_path / "a.xml", threads=1), load(tmp_path / "a.xml", threads=1)
    del first
    gc.collect()
    del second
    gc.collect()
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        subprocess.run(["true"], check=True)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("onnx", lambda path: write(nn.ReLU().eval(), torch.zeros(2, 3), path, "onnx")),
        ("openvino", lambda path: write(nn.ReLU().eval(), torch.zeros(2, 3), path.with_suffix(".xml"), "openvino")),
        ("onnxruntime", load),
        ("onnxruntime", lambda path: quantise(path, path, [])),
        ("onnxruntime", float_nodes),
    ],
)
def test_where_a_package_is_missing_it_is_said_what_brings_it(
    package: str, call: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.onnx").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"needs more packages .*: pip install 'downmix\[export\]'"):
        call(tmp_path / "a.onnx")
