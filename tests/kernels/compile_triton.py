"""Compiles every Triton kernel for GPUs that need not be here.

Prints its name, the GPU, how many bytes of a thread's numbers are kept in memory, as registers do not hold them, and
how many bytes a thread loads at once at most.

The kernels' own forward and backward say what they would launch, on CPU tensors that nothing reads.
"""

import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from downmix.kernels._layouts import layout as layout_of
from downmix.kernels.triton import _overlapping_plan, _pix_linear, add_relu_mean, pix, pix_layer, soft_pool

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)]
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


class Compiled:
    """Stands in for a kernel: takes its launches and compiles instead, specialised as a launch would be."""

    def __init__(self, kernel: Any):
        self.kernel, self.arg_names = kernel, kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any) -> None:
        names = self.arg_names
        options = {
            "num_warps": num_warps,
            "enable_fp_fusion": enable_fp_fusion,
            "maxnreg": constants.pop("maxnreg", None),
        }
        fixed: dict[tuple[int, ...], Any] = {(names.index(name),): value for name, value in constants.items()}
        attributes: dict[tuple[int, ...], Any] = {}

        def type_of(path: tuple[int, ...], value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(type_of((*path, i), item) for i, item in enumerate(value))
            if isinstance(value, float):
                return "fp64"
            if isinstance(value, torch.Tensor):
                attributes[path] = [["tt.divisibility", 16]]
                return POINTERS[value.dtype]
            if value == 1:
                fixed[path] = 1
                return "constexpr"
            if value % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            return "i32" if value < 2**31 else "i64"

        types = {names[i]: type_of((i,), value) for i, value in enumerate(args)}
        types |= dict.fromkeys(constants, "constexpr")
        for target in TARGETS:
            source = ASTSource(self.kernel, {name: types[name] for name in names}, fixed, attributes)
            compiled = triton.compile(source, target=target, options=options)
            assert ".entry" in compiled.asm["ptx"]
            spilled, widest = spills(compiled.asm["cubin"]), widest_load(compiled.asm["ptx"])
            print(self.kernel.__name__, target.arch, spilled, widest, sep="\t")


def widest_load(ptx: str) -> int:
    """The bytes of the widest load from memory."""
    loads = re.findall(r"ld\.global[.\w:]*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max(int(count or 1) * int(bits) // 8 for count, bits in loads)


def spills(binary: bytes) -> int:
    """The bytes of a thread's numbers that are in memory, as far as Triton's own tools are here to say so."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (stack,), (local,) = (re.findall(rf" {word}:(\d+)", said) for word in ("STACK", "LOCAL"))
    return int(stack) + int(local)


def main() -> None:
    for module in (pix, pix_layer, _pix_linear, soft_pool, _overlapping_plan, add_relu_mean):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, Compiled(getattr(module, name)))
    for shape, reduction, layout, dtype, operator, fusion in [
        ((2, 64, 56, 56), 4, torch.contiguous_format, torch.float16, "max+avg", "threshold"),
        ((2, 64, 56, 56), 4, torch.channels_last, torch.bfloat16, "max+avg", "weighted"),
        ((2, 25, 14, 14), 6, torch.channels_last, torch.float32, "min", "threshold"),
        ((2, 60, 14, 14), 5, torch.channels_last, torch.float32, "max+avg", "threshold"),
        ((2, 60, 14, 14), 3, torch.channels_last, torch.bfloat16, "max+avg", "weighted"),
        ((2, 1024, 7, 7), 512, torch.contiguous_format, torch.float32, "avg", "threshold"),
        ((2, 64, 8, 8), 2, torch.contiguous_format, torch.float64, "max", "weighted"),
        ((2, 64, 1, 1), 4, torch.contiguous_format, torch.float32, "max+avg", "threshold"),
        ((2, 64, 14, 14), 4, torch.contiguous_format, torch.float32, "max+avg", "threshold"),
    ]:
        x, p = torch.empty(shape, dtype=dtype, memory_format=layout), torch.empty(2, -(-shape[1] // reduction))
        y = pix.forward(x, p, reduction, 0.5, fusion, operator, False)
        pix.backward(y, x, p, reduction, 0.5, fusion, operator, False)
        mean, constants = torch.empty(shape[:2]), (reduction, 0.5, fusion, operator, False)
        linear = {"mean": mean, "weight": torch.empty(*p.shape[1:], shape[1], 1, 1, dtype=dtype), "has_bias": True}
        pix_layer.backward(y, x, p, *constants, slope=1.0, **linear, other=x, rectified=True)
    for shape, kernel, stride, padding, layout, dtype in [
        ((2, 64, 56, 56), 2, 2, 0, torch.contiguous_format, torch.float16),
        ((2, 64, 56, 56), 2, 2, 0, torch.channels_last, torch.bfloat16),
        ((2, 64, 56, 56), 3, 2, 1, torch.channels_last, torch.float16),
        ((2, 64, 28, 28), 3, 2, 1, torch.contiguous_format, torch.float32),
        ((2, 64, 28, 28), 28, 28, 0, torch.channels_last, torch.float32),
        ((2, 64, 2048), 512, 1, 0, torch.contiguous_format, torch.float32),
        ((2, 8, 9, 9, 9), 3, 2, 1, torch.contiguous_format, torch.float64),
        ((2, 64, 28, 28), 11, 4, 5, torch.channels_last, torch.float16),
        ((2, 64, 28, 28), 2, 2, 0, torch.contiguous_format, torch.float32),
    ]:
        n = len(shape) - 2
        x = torch.empty(shape, dtype=dtype, memory_format=layout)
        windows = ([kernel] * n, [stride] * n, [padding] * n, [1] * n, False)
        y = soft_pool.forward(x, *windows, "exact")
        soft_pool.backward(torch.empty_like(y), x, *windows, "exact")
    for shape, layout, dtype in [
        ((2, 64, 56, 56), torch.channels_last, torch.bfloat16),
        ((2, 64, 7, 7), torch.contiguous_format, torch.float64),
        ((2, 64, 1, 1), torch.contiguous_format, torch.float32),
        ((64, 64, 14, 14), torch.contiguous_format, torch.float32),
    ]:
        x = torch.empty(shape, dtype=dtype, memory_format=layout)
        add_relu_mean.forward(x, x.clone())
        add_relu_mean.forward(x, None)
    for shape, parts, dtype in [
        ((1, 2048), 1, torch.bfloat16),
        ((32, 512), 13, torch.float16),
        ((3, 28), 3, torch.float64),
        ((40, 100), 1, torch.float32),
        ((9, 25), 64, torch.float32),
        ((32, 1024), 7, torch.float32),
    ]:
        mean = torch.empty(shape[0], parts, shape[1], dtype=torch.promote_types(dtype, torch.float32))
        weight, bias = torch.empty(shape[1] // 4, shape[1], 1, 1, dtype=dtype), torch.empty(shape[1] // 4, dtype=dtype)
        for means in (mean, mean[:, 0].to(dtype)):
            launch = _pix_linear.forward_launch(layout_of(means), layout_of(weight), True, 1.0, dtype)
            assert not isinstance(launch, str), launch
            launch(means, weight, bias, torch.empty(shape[0], weight.shape[0], dtype=dtype))
            logits = torch.empty(shape[0], parts, weight.shape[0], dtype=mean.dtype)
            launch = _pix_linear.backward_launch(layout_of(logits), layout_of(means), layout_of(weight), True)
            if not isinstance(launch, str):
                launch(logits, means, weight, torch.empty(shape, dtype=mean.dtype), torch.empty_like(weight), bias)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
