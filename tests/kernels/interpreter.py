"""Triton's interpreter, computing as compiled code does where it would not."""

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import triton
from triton.runtime import interpreter


def compute_as_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_maxnumf", maximum_of_numbers)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)


def cast(
    builder: Any, source: Any, target: Any, interpreters: Callable[..., Any] = interpreter.InterpreterBuilder.cast_impl
) -> Any:
    """The interpreter's cast, but as compiled code has it: bfloat16 rounded, not cut off, from float64 too."""
    bfloat16, types = triton.language.bfloat16, (source.dtype.scalar, target.scalar)
    if bfloat16 not in types:
        return interpreters(builder, source, target)
    values = torch.from_numpy(numpy.ascontiguousarray(source.data))
    values = values.view(torch.bfloat16) if types[0] == bfloat16 else values
    if types[1] == bfloat16:
        data = values.to(torch.bfloat16).view(torch.uint16).numpy()
    else:
        data = values.double().numpy().astype(f"float{types[1].primitive_bitwidth}")
    return interpreter.TensorHandle(data.reshape(source.data.shape), target.scalar)


def patch_tensor(tensor: Any, scope: Any, interpreters: Callable[..., None] = interpreter._patch_lang_tensor) -> None:
    """Tensors that count loops as those of Triton 3.9's interpreter do; NumPy 2.4 refuses Triton 3.6's."""
    interpreters(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


def maximum_of_numbers(builder: Any, left: Any, right: Any) -> Any:
    """As compiled code and Triton 3.9's interpreter have it; in Triton 3.6's NaN wins."""
    return builder.binary_op(left, right, numpy.fmax)


def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """As compiled code has it, rounded once, of float32 at least."""
    data = x.data.astype(numpy.float64) * y.data + z.data
    return interpreter.TensorHandle(data.astype(x.data.dtype), x.dtype.scalar)
