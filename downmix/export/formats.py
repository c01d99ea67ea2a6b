"""Writes a network in the formats of other runtimes."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import need
from ..ops._define import check_choice
from ._program import check_arguments, trace_program

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".pt2"}
DYNAMIC = ("batch", "size")
OPSET = 18
_NEEDED = {
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch-export": (),
    "aoti": (),
}
METADATA_FILE = "downmix.json"  # within a program of torch.export


def write(
    network: nn.Module,
    images: Tensor,
    path: str | Path,
    format: str,
    *,
    dynamic: Sequence[str] = ("batch",),
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a network of one input and one output, as it is.

    Args:
        network: in evaluation mode. See :func:`downmix.export.regroup` for what makes PiX fast in a runtime.
        images (Tensor[B, C, H, W]): for the trace, B of 2 and more where the batch is dynamic.
        path: the file; OpenVINO's weights go beside it as ``.bin``.
        format: ``"onnx"`` (operators of opset 18 alone), ``"openvino"``, ``"torch-export"``, a program for
            ``torch.export.load``, or ``"aoti"``, machine code for ``torch._inductor.aoti_load_package``.
        dynamic: what may differ from ``images``: ``"batch"``, ``"size"``.
        metadata: words to store inside, by name.

    Raises:
        TypeError: if ``network`` is no module or ``images`` no tensor.
        ValueError: if an option is unknown, the suffix is not the format's, the network is in training mode, the
            batch is dynamic and has fewer than 2 images, or torch.export can't trace the network.
        ImportError: if a package that the format needs is missing.
    """
    check_arguments("write", network, images)
    check_choice("format", format, tuple(FORMATS))
    for what in dynamic:
        check_choice("dynamic", what, DYNAMIC)
    path = Path(path)
    check_suffix(path, format)
    if "batch" in dynamic and len(images) < 2:  # torch.export takes a size of 1 for one that stays
        raise ValueError(
            f"a batch of any size is traced with 2 images or more, got {len(images)}; pass more, or a dynamic without "
            "'batch'"
        )
    metadata = metadata or {}
    need("export", *_NEEDED[format])
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own insides
        program = _trace(network, images, dynamic)
        if format == "torch-export":
            torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})
        elif format == "aoti":
            options = {"aot_inductor.metadata": metadata}
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        elif format == "onnx":
            _write_onnx(program, path, metadata)
        else:
            _write_openvino(program, path, metadata, compress=images.dtype == torch.float16)


def check_suffix(path: Path, format: str) -> None:
    if path.suffix != FORMATS[format]:
        raise ValueError(f"a file of format {format} ends in {FORMATS[format]}, got {path.name}")


def _trace(network: nn.Module, images: Tensor, dynamic: Sequence[str]) -> torch.export.ExportedProgram:
    sizes: dict[int, Any] = {}
    if "batch" in dynamic:
        sizes[0] = torch.export.Dim("batch")
    if "size" in dynamic:
        sizes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    return trace_program(network, images, (sizes,))


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    import onnx

    argsort = torch.ops.aten.argsort.stable  # FBS's
    if any(node.target == argsort for node in program.graph.nodes):
        program = program.run_decompositions({argsort: _argsort_stably})
    written: Any = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], opset_version=OPSET, dynamo=True, verbose=False
    )
    model = written.model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _argsort_stably(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """By two sorts that may leave equal values in any order, as OpenVINO's does: the second one sorts their places."""
    values, places = x.sort(dim, descending)
    levels = (values.diff(dim=dim, prepend=values.narrow(dim, 0, 1)) != 0).long().cumsum(dim)
    keys, _ = (levels * x.shape[dim] + places).sort(dim)
    return keys % x.shape[dim]


def _write_openvino(
    program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str], compress: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _write_onnx(program, Path(folder) / "model.onnx", {})
        convert_to_openvino(Path(folder) / "model.onnx", path, metadata, compress)


def convert_to_openvino(source: Path, path: Path, metadata: dict[str, str], compress: bool) -> None:
    """An ONNX file as OpenVINO's, with its weights in float16 if ``compress``."""
    need("export", "openvino")
    import openvino

    model = openvino.convert_model(source)
    for name, value in metadata.items():
        model.set_rt_info(value, ["downmix", name])
    openvino.save_model(model, path, compress_to_fp16=compress)
