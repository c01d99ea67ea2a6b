"""Exports every registered network at full width and compares it with PyTorch in ONNX Runtime and OpenVINO.

Not a test, as it takes an hour: `python -m tests.export.every_network [NAME …]` prints, for each network, how far the
logits are from PyTorch's in float64, relative to the largest logit: those of ONNX Runtime, of OpenVINO, and of PyTorch
in float32. Images are of the traced size and of an odd one.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import openvino
import timm
import torch

import downmix
from downmix.export import load, regroup, write
from downmix.fuse import fold_batch_norms
from downmix.models._networks import registered
from downmix.tools._bench_networks import settle_batch_norms


def check(name: str, folder: Path) -> str:
    torch.manual_seed(0)
    side = 96 if "inception" in name else 64
    network = timm.create_model(name, num_classes=100).eval()
    images = torch.randn(2, 3, side, side)
    settle_batch_norms(network, torch.randn(8, 3, side, side))
    regrouped, report = regroup(fold_batch_norms(network, images)[0], images)
    write(regrouped, images, folder / "net.onnx", "onnx", dynamic=("batch", "size"))
    model = onnx.load(folder / "net.onnx")
    foreign = {node.domain for node in model.graph.node} | {opset.domain for opset in model.opset_import}
    assert foreign == {""}, foreign
    assert not model.functions
    openvino.save_model(openvino.convert_model(folder / "net.onnx"), folder / "net.xml", compress_to_fp16=False)
    batches = [torch.randn(shape) for shape in ((2, 3, side, side), (1, 3, side + 13, side + 25))]
    with torch.no_grad():
        own = [network(batch).numpy() for batch in batches]
        exact = [network.double()(batch.double()).numpy() for batch in batches]
    outputs = {file: [load(folder / file, 1).run(x.numpy()) for x in batches] for file in ("net.onnx", "net.xml")}
    errors = [
        max(np.abs(y - expected).max() / np.abs(expected).max() for y, expected in zip(found, exact, strict=True))
        for found in (*outputs.values(), own)
    ]
    stayed = [layer.name for layer in report if layer.why_not]
    return f"{' '.join(f'{error:.1e}' for error in errors)}, {len(report)} PiX layers, {len(stayed)} not regrouped"


if __name__ == "__main__":
    with downmix.use_backend("reference"), tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or registered():
            try:
                print(name, check(name, Path(folder)), flush=True)
            except Exception as error:  # the others go on
                print(name, "FAILED", type(error).__name__, str(error)[:300], flush=True)
