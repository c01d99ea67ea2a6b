"""Sums of any length, whose rounding does not grow with it: of pieces, each of which is carried with what was lost.

In LLVM, as `_window_memory` is: kernels add up in many places.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ._common import intrinsic
from ._vectors import Value

PIECE = 16  # terms that add up before they are carried


def _carried(builder: Any, total: Value, part: Value) -> tuple[Value, Value]:
    whole, lost = (builder.extract_value(total, i) for i in range(2))
    result = builder.fadd(whole, part)
    back = builder.fsub(result, whole)
    of_whole, of_part = builder.fsub(whole, builder.fsub(result, back)), builder.fsub(part, back)
    return result, builder.fadd(lost, builder.fadd(of_whole, of_part))


@intrinsic
def carry(typingctx, total, part):
    """A sum and what rounding has left out of it, with ``part`` added (Knuth's two-sum)."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, signature.return_type, _carried(builder, *args))

    return types.UniTuple(part, 2)(total, part), codegen


@intrinsic
def settle(typingctx, total, part, zero):
    """The sum, with ``part`` added; of infinities nothing is lost but numbers."""

    def codegen(context, builder, signature, args):
        whole, lost = _carried(builder, *args[:2])
        return builder.fadd(whole, builder.select(builder.fcmp_unordered("uno", lost, lost), args[2], lost))

    return part(total, part, zero), codegen
