"""Follows one forward pass operator by operator, and says which layer ran each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ._formulas import Elements, elements
from ._ptflops import ptflops
from ._run import check_module, evaluation, images, tensors_in
from .paper import paper_operations

# No bytes, no arithmetic.
_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "as_strided", "lift_fresh")
# In place, without reading what they overwrite.
_OVERWRITES = ("copy_", "zero_", "fill_")


@dataclass(frozen=True)
class Call:
    """One operator's run.

    Attributes:
        op: its name with its namespace, such as ``aten.relu``.
        macs: multiply-adds of convolutions and matrix products, 0 for all others.
        elements: element operations by kind, None where there is no formula.
        paper: operations by the source's formulas, None where it gives none.
        read_bytes, written_bytes: as if no cache kept anything between operators.
    """

    op: str
    macs: int
    elements: Elements | None
    paper: int | None
    read_bytes: int
    written_bytes: int


@dataclass
class Trace:
    """What ran in each module itself, not in its children; keys are paths, "" is the network itself.

    Attributes:
        calls: in the order of the first call.
        ptflops: operations by the convention of ptflops, of modules that it has a formula for.
        outputs: the shape of the last output.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    ptflops: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)


@torch.inference_mode(False)  # in which operators come whole that formulas know by their parts
def trace(model: nn.Module, input_size: tuple[int, int, int], batch_size: int = 1) -> Trace:
    """Runs ``model`` once in evaluation mode, on its own device, and leaves it as it was."""
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it runs its layers itself, past their hooks
            raise TypeError(
                f"{f'layer {name!r} of model' if name else 'model'} is scripted or traced already, and its layers "
                "can't be counted; count the network that it was made from"
            )
    found, stack = Trace(), [""]

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        stack.append(name)

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()
        count = ptflops(module, inputs, output)
        if count is not None:
            found.ptflops[name] = found.ptflops.get(name, 0) + count
        if isinstance(output, Tensor):
            found.outputs[name] = tuple(output.shape)

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(partial(leave, name)))
    try:
        with evaluation(model), torch.no_grad():
            x = images(model, batch_size, input_size)
            with _Follower(lambda call: found.calls.setdefault(stack[-1], []).append(call)):
                model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Follower(TorchDispatchMode):
    def __init__(self, note: Callable[[Call], None]):
        from torch.utils.flop_counter import flop_registry  # loads triton, which `import downmix` must not

        super().__init__()
        self._note, self._formulas = note, flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {id(t) for t in tensors_in((args, kwargs))}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or torch.Tag.inplace_view in func.tags or name in _FREE:
            return output
        plain = name.removesuffix("_")
        count, macs = elements(plain, args, output), 0
        if formula := self._formulas.get(func.overloadpacket):
            operations = formula(*args, **kwargs, out_val=output)
            if func.namespace == "aten":
                macs = operations // 2
            elif count is None:  # an operator of ours, or one that a user has given a formula
                count = {plain: operations}
        read = [t for t in tensors_in((args, kwargs)) if not (name in _OVERWRITES and t is args[0])]
        # What returns an argument as it is, without changing it, writes nothing.
        written = [t for t in tensors_in(output) if id(t) not in before or func._schema.is_mutable]
        paper = paper_operations(plain, macs, args, output)
        self._note(Call(f"{func.namespace}.{plain}", macs, count, paper, _bytes(read), _bytes(written)))
        return output


def _bytes(tensors: Iterable[Tensor]) -> int:
    # An expanded tensor shows more elements than there is memory behind it.
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
