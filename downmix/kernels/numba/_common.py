"""How the CPU kernels see a tensor: the address of its first element and a type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import extending, types

# Callers don't pass the typing context that a function of Numba's takes first, which a type checker can't know.
intrinsic: Any = extending.intrinsic

# A kernel gets a tensor as an address: to make a NumPy array of a tensor takes longer than a small kernel. These give
# the type of what lies there; Numba knows no half precision on the CPU, so float16 goes as int16, bfloat16 as uint16.
ELEMENT = {
    torch.float16: np.empty(0, np.int16),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
}
BYTES = 64  # of a vector


def compiled_for(element: torch.dtype, number: torch.dtype) -> tuple[Any, Any, int, Any]:
    """For what a kernel is compiled: the types of what is stored and of what it computes in, a vector's lanes of the
    latter, and what makes such a number."""
    computed = ELEMENT[number]
    return ELEMENT[element], computed, BYTES // computed.itemsize, computed.dtype.type


@intrinsic
def memory(typingctx, address, element):
    """A pointer to memory of ``element``'s type at ``address``; strides lead through it."""
    pointer = types.CPointer(element.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.intp, element), codegen
