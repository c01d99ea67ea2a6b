"""Runs exported networks, each in its runtime."""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._extras import need
from .formats import FORMATS, METADATA_FILE

_OPENVINO_TYPES = {"f32": "float32", "f16": "float16"}
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """A network out of a file.

    Attributes:
        runtime: name and version.
        run: images [B, C, H, W] to the network's output, both of ``dtype``.
        dtype: of images, by its name in numpy.
        metadata: what :func:`downmix.export.write` stored inside.
    """

    runtime: str
    run: Run
    dtype: str
    metadata: dict[str, str]


def load(path: str | Path, threads: int | None = None, shape: Sequence[int] | None = None) -> Exported:
    """Opens a file of any of our formats, on the CPU, with arithmetic in the file's own precision.

    Args:
        path: ``.onnx``, ``.xml`` or ``.pt2``.
        threads: of the runtime; torch's are those of :func:`torch.set_num_threads`.
        shape: of the images, where it is known: OpenVINO fuses more then, and takes no other.

    Raises:
        ValueError: if the suffix is none of ours, or the runtime can't read the file.
        FileNotFoundError: if there is no such file.
        ImportError: if the runtime is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix not in FORMATS.values():
        raise ValueError(f"an exported network ends in .onnx, .xml or .pt2, got {path.name}")
    try:
        if path.suffix == ".onnx":
            return _load_onnx(path, threads)
        if path.suffix == ".xml":
            return _load_openvino(path, threads, shape)
        return _load_torch(path)
    except ImportError:
        raise
    except Exception as error:  # runtimes raise what they like
        raise ValueError(f"{path} can't be read as an exported network: {error}") from error


def _load_onnx(path: Path, threads: int | None) -> Exported:
    need("export", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # A pool that spins while it waits takes the processor from what is timed in turns with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    dtype = "float16" if images.type == "tensor(float16)" else "float32"
    metadata = session.get_modelmeta().custom_metadata_map
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    return Exported(runtime, lambda x: session.run(None, {images.name: x})[0], dtype, metadata)  # type: ignore[return-value]


@functools.cache
def openvino_core() -> Any:
    """The one Core of this process, which lives as long as it.

    Each brings a stack for signal handlers and takes it away again; of two that go in the order they came, the thread
    is left with a stack that is no more, and the next signal, as a loader's worker that ends, kills the process.
    """
    need("export", "openvino")
    import openvino

    return openvino.Core()


def _load_openvino(path: Path, threads: int | None, shape: Sequence[int] | None) -> Exported:
    need("export", "openvino")
    import openvino

    model = openvino_core().read_model(path)
    if shape is not None:
        model.reshape(list(shape))
    dtype = _OPENVINO_TYPES[model.input(0).element_type.get_type_name()]
    # By its own choice OpenVINO computes in bfloat16 where the processor can.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    request = openvino_core().compile_model(model, "CPU", options).create_infer_request()
    stored = model.get_rt_info(["downmix"]).value if model.has_rt_info(["downmix"]) else {}
    metadata = {name: value.value if hasattr(value, "value") else value for name, value in stored.items()}
    runtime = f"OpenVINO {openvino.__version__.split('-')[0]}"
    return Exported(runtime, lambda x: request.infer([x])[0].copy(), dtype, metadata)


def _load_torch(path: Path) -> Exported:
    with zipfile.ZipFile(path) as package:
        compiled = any("aotinductor" in name for name in package.namelist())
    if compiled:
        runner: Any = torch._inductor.aoti_load_package(str(path))
        metadata = {name: value for name, value in runner.get_metadata().items() if not name.startswith("AOTI")}
        return Exported(f"AOTInductor {torch.__version__}", _through_torch(runner), _dtype(metadata), metadata)
    found = {METADATA_FILE: "{}"}
    program = torch.export.load(path, extra_files=found)
    metadata = json.loads(found[METADATA_FILE])
    return Exported(f"torch.export {torch.__version__}", _through_torch(program.module()), _dtype(metadata), metadata)


def _dtype(metadata: dict[str, str]) -> str:
    return metadata.get("dtype", "float32")


def _through_torch(network: Callable[..., Any]) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run
