"""Static quantisation to 8 bits, by ONNX Runtime's own tool."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .._extras import need
from .formats import convert_to_openvino
from .runtimes import openvino_core

# Layers of OpenVINO that compute nothing.
_MOVES = {"Input", "Output", "Const", "Reorder", "Reshape"}


def quantise(source: Path, target: Path, batches: Iterable[np.ndarray]) -> None:
    """Writes a copy of an ONNX file that computes in 8 bits where its runtime can.

    Weights get a scale for each output channel, activations one each, from the smallest and the largest value they have
    on ``batches``. Gates stay in float32, as do images and outputs. The file says what is quantised by pairs of
    QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO fuse into integer arithmetic.

    Args:
        source: what :func:`downmix.export.write` wrote as ``"onnx"``, in float32.
        target: ``.onnx`` or ``.xml``; the metadata of ``source`` go into it.
        batches: images as the network takes them.

    Raises:
        ValueError: if ``target`` has another suffix.
        ImportError: if ONNX Runtime is missing.
    """
    need("export", "onnx", "onnxruntime")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if target.suffix not in (".onnx", ".xml"):
        raise ValueError(f"8 bits are for ONNX Runtime and OpenVINO, .onnx or .xml; got {target.name}")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            images = next(self.left, None)
            return None if images is None else {"images": images}

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        # Symbolic shapes would need another package, and a graph without loops does not need them.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantised,
            Reader(),
            nodes_to_exclude=_gates(onnx.load(prepared).graph),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # type: ignore[arg-type]
        )
        metadata = {prop.key: prop.value for prop in onnx.load(source).metadata_props}
        if target.suffix == ".xml":
            convert_to_openvino(quantised, target, metadata, compress=False)
        else:
            model = onnx.load(quantised)
            onnx.helper.set_model_props(model, metadata)
            onnx.save(model, target)


def _gates(graph: Any) -> list[str]:
    """Nodes that give maps of one pixel: they take no time, and PiX compares what they give with its threshold."""
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]] for value in graph.value_info}
    return [node.name for node in graph.node if [1, 1] in map(sizes.get, node.output)]


def float_nodes(path: Path) -> dict[str, int]:
    """What a runtime computes in floating point, once it has optimised a network: how many nodes of each operator."""
    found = _float_layers(path) if path.suffix == ".xml" else _float_operators(path)
    return dict(Counter(found).most_common())


def _float_operators(path: Path) -> Iterable[str]:
    need("export", "onnx", "onnxruntime")
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3  # it warns that the file is for this machine alone
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    integers: set[str] = set()
    for node in nodes:
        if node.op_type.startswith("QLinear") or node.op_type == "QuantizeLinear" or node.input[0] in integers:
            integers.update(node.output if node.op_type != "DequantizeLinear" else ())
        elif node.op_type != "DequantizeLinear":
            yield node.op_type


def _float_layers(path: Path) -> Iterable[str]:
    model = openvino_core().read_model(path)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    for layer in openvino_core().compile_model(model, "CPU", options).get_runtime_model().get_ordered_ops():
        kind, precision = (layer.get_rt_info()[name].astype(str) for name in ("layerType", "runtimePrecision"))
        if precision.startswith("f") and kind not in _MOVES:
            yield kind
