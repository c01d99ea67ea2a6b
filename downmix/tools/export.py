"""`downmix export`: a network written for another runtime, fast there, and checked by running it."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from .._version import __version__
from ..export import DYNAMIC, FORMATS, Regrouped, load, regroup, write
from ..export.formats import check_suffix
from ..fuse import fold_batch_norms
from ..models._networks import baseline_of, create_network, own_input_size
from ..train import Recipe
from ..train.sources import load_data
from ..train.writable import check_file
from ._bench_exported import bench_exported
from ._environment import commit
from ._export_int8 import quantise_and_score
from ._trained import own_names, read_class_names, read_images, trained_network, view

HELP = "Write a network for ONNX Runtime, OpenVINO, torch.export or AOTInductor, and check it by running it."
# What runtimes may differ by, relative to the largest logit; float16 has 11 bits, and networks are deep.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2}


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "model", nargs="?", type=str, help="a network, by its name in timm or NAME:key=value,…; or the checkpoint's"
    )
    parser.add_argument("--checkpoint", type=Path, default=None, help="what downmix train wrote, or other weights")
    parser.add_argument("--pretrained", action="store_true", help="load the weights that timm has for the name")
    parser.add_argument(
        "--num_classes", type=int, default=None, help="outputs; by default as many as classes have names"
    )
    parser.add_argument(
        "--classes",
        type=Path,
        default=None,
        help="file with a class a line, or folder of class folders; by default the checkpoint's",
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="for which runtime")
    parser.add_argument(
        "--output", type=Path, default=None, help="the file; by default runs/export/MODEL and the suffix"
    )
    parser.add_argument("--dynamic", nargs="*", choices=DYNAMIC, default=["batch"], help="what callers may choose")
    parser.add_argument("--image_size", type=int, default=None, help="height and width; by default the network's own")
    kinds = (*TOLERANCE, "int8")
    parser.add_argument("--dtype", choices=kinds, default="float32", help="of weights, images and logits; int8: inside")
    parser.add_argument(
        "--benchmark",
        nargs="?",
        const="",
        type=str,
        help="time the file against this network, exported likewise; by default the one that the name says it varies",
    )
    parser.add_argument("--images", nargs="*", type=Path, default=[], help="real images to check the file on as well")
    int8 = "for int8, a data set as `downmix train` takes it: training images calibrate, held-out ones are scored"
    parser.add_argument("--data", type=str, default=None, help=int8)
    parser.add_argument("--data_dir", type=str, default=None, help="the folder it lies in, as there")
    parser.add_argument("--calibration_images", type=int, default=128, help="for int8, of the training images")


def run(args: Any) -> None:
    for option in ("image_size", "num_classes", "calibration_images"):
        if args[option] is not None and args[option] < 1:
            raise ValueError(f"{option} must be at least 1, got {args[option]}")
    if args.pretrained and (args.checkpoint or not args.model):
        raise ValueError("--pretrained loads timm's weights of a name; give it with a name, without --checkpoint")
    if args.dtype != "int8" and (args.data or args.data_dir):
        raise ValueError(f"--data and --data_dir are for --dtype int8; leave them out of {args.dtype}")
    names = read_class_names(args.classes) if args.classes else []
    count = args.num_classes or len(names) or None
    if names and len(names) != count:
        raise ValueError(f"{args.classes} names {len(names)} classes, but num_classes is {count}")
    options: dict[str, Any] = {"num_classes": count} if count else {}
    network: Any
    if args.checkpoint or not args.model:
        network = trained_network(args.model, args.checkpoint, **options)
    else:
        network = create_network(args.model, pretrained=args.pretrained, **options)
        if not args.pretrained:
            print("the weights are random, good for timing alone: --checkpoint FILE or --pretrained loads trained ones")
    name: str = args.model or network.pretrained_cfg["architecture"]
    output = args.output or Path("runs/export") / f"{name.partition(':')[0]}{FORMATS[args.format]}"
    check_suffix(output, args.format)
    check_file(output)
    facts = {"name": name, "classes": names, "image_size": args.image_size, "images": args.images}
    if args.dtype == "int8":
        _export_int8(network, output, args, facts)
        return
    baseline = None if args.benchmark is None else args.benchmark or baseline_of(name)
    beside = create_network(baseline, num_classes=network.num_classes) if baseline else None  # which may not be known
    how: dict[str, Any] = {"format": args.format, "dynamic": args.dynamic, "dtype": args.dtype}
    export(network, output, **facts, **how)
    if baseline and beside:
        how["image_size"] = view(network, args.image_size)["input_size"][-1]
        benchmark(output, beside, baseline, **how)


def _export_int8(network: nn.Module, output: Path, args: Any, facts: dict[str, Any]) -> None:
    if args.format not in ("onnx", "openvino"):
        raise ValueError(f"8 bits are for ONNX Runtime and OpenVINO; pass --format onnx or openvino, not {args.format}")
    if args.data is None:
        raise ValueError("int8 needs images to find the range of activations on; name a data set as --data")
    if "batch" not in args.dynamic:
        raise ValueError("int8 is calibrated and scored in batches; keep batch in --dynamic")
    if args.benchmark is not None:
        raise ValueError("--benchmark is not for int8; export both networks, then `downmix bench --exported FILE FILE`")
    data = load_data(Recipe(data=args.data, data_dir=args.data_dir))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float32.onnx"
        export(network, source, dynamic=args.dynamic, **facts)
        quantise_and_score(source, output, data, view(network, args.image_size), args.calibration_images)


def benchmark(file: Path, baseline: nn.Module, name: str, **how: Any) -> None:
    """Exports the baseline as :func:`export` is told ``how``, and prints how fast ``file`` is beside it."""
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / f"{name.partition(':')[0]}{file.suffix}"
        export(baseline, beside, name=name, console=Console(quiet=True), **how)
        batches = (1, 8) if "batch" in how["dynamic"] else (2,)  # that of the trace
        bench_exported([beside, file], batches, image_size=how["image_size"])


def export(
    network: nn.Module,
    output: Path,
    format: str = "onnx",
    *,
    name: str = "",
    classes: Sequence[str] = (),
    dynamic: Sequence[str] = ("batch",),
    image_size: int | None = None,
    dtype: str = "float32",
    images: Sequence[Path] = (),
    console: Console | None = None,
) -> dict[str, float]:
    """Folds BatchNorms, regroups PiX, writes the file, and compares its output with the network's.

    Args:
        network: a classifier, which stays as it is; its ``pretrained_cfg`` says how it wants its images.
        output: the file, see :func:`downmix.export.write`.
        format, dynamic: as there.
        name: of the network, to be stored inside.
        classes: their names, to be stored inside; by default the ``label_names`` of ``pretrained_cfg``.
        image_size: height and width for which it is traced; by default the network's own.
        dtype: ``"float32"`` or ``"float16"``, of weights, images and logits.
        images: files of real images to compare on, besides random ones.
        console: where it is reported.

    Returns:
        The largest difference of a logit on random and on real images, relative to the largest logit.

    Raises:
        ValueError: if something can't be used, or the file computes something else.
    """
    console = console or Console()
    network.eval()
    size = (3, image_size, image_size) if image_size else own_input_size(name, network, "--image_size")
    how = view(network, image_size)
    noise = torch.randn(2, *size)
    about = _metadata(network, name, how, classes, dtype)
    batches = {"random": _random(size, dynamic)}
    if images:  # before the file is written, as one may be missing
        batches["real"] = [read_images(network, [path], image_size)[0] for path in images]
        if "batch" not in dynamic:
            batches["real"] = [torch.cat(pair) for pair in zip(batches["real"], batches["real"], strict=True)]
    to = getattr(torch, dtype)
    try:
        fast, report = regroup(fold_batch_norms(network, noise)[0], noise)
        write(fast.to(to), noise.to(to), output, format, dynamic=dynamic, metadata=about)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} can't be exported for images of {'×'.join(map(str, size))}: {error}") from error
    exported = load(output)
    compared = {kind: _compare(network, exported.run, batch, dtype) for kind, batch in batches.items()}
    found = {kind: difference for kind, (difference, _) in compared.items()}
    console.print(f"{output}: {_regrouped(report)}", soft_wrap=True)
    for kind, difference in found.items():
        words = f"{kind} images: {exported.runtime} and PyTorch differ by {difference:.1e} of the largest logit"
        console.print(words, soft_wrap=True)
    for kind, (difference, rounding) in compared.items():
        allowed = max(TOLERANCE[dtype], 4 * rounding)
        if not difference <= allowed:
            raise ValueError(
                f"{output} gives other logits than the network on {kind} images: they differ by {difference:.1e} of "
                f"the largest, more than the {allowed:.0e} that rounding explains in {dtype}"
            )
    return found


def _metadata(network: nn.Module, name: str, how: dict[str, Any], classes: Sequence[str], dtype: str) -> dict[str, str]:
    facts = {
        "model": name or type(network).__name__,
        "classes": list(classes) or own_names(network),
        **how,
        "dtype": dtype,
        "downmix": __version__,
        "commit": commit(),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _random(size: tuple[int, int, int], dynamic: Sequence[str]) -> list[Tensor]:
    """Batches of other numbers and odd sizes where the file allows them."""
    counts = (1, 2, 3) if "batch" in dynamic else (2, 2)
    batches = [torch.randn(count, *size) for count in counts]
    if "size" in dynamic:
        batches.append(torch.randn(2, size[0], size[1] + 5, size[2] + 32))
    return batches


def _compare(network: nn.Module, run: Any, batches: Sequence[Tensor], dtype: str) -> tuple[float, float]:
    """By how much a logit differs from PyTorch's, and PyTorch's from those in float64, relative to the largest."""
    exact = copy.deepcopy(network).double()
    differences = []
    for batch in batches:
        with torch.inference_mode():
            expected, precise = network(batch).numpy(), exact(batch.double()).numpy()
        found = run(batch.numpy().astype(dtype)).astype("float32")
        differences.append([np.abs(y).max() for y in (found - expected, expected - precise, expected)])
    difference, rounding, largest = np.max(differences, axis=0)  # a NaN stays one
    return float(difference / (largest or 1)), float(rounding / (largest or 1))


def _regrouped(report: Sequence[Regrouped]) -> str:
    if not report:
        return "written; it has no PiX layer"
    stayed = [f"{layer.name} {layer.why_not}" for layer in report if layer.why_not]
    words = f"written, {len(report) - len(stayed)} of {len(report)} PiX layers regrouped"
    return f"{words}; the others stay: {'; '.join(stayed)}" if stayed else words
