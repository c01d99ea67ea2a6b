"""Registers an operator with torch once, for every device, from its reference alone.

How a call travels::

    downmix.pick_or_mix(x, p, …)          checks the arguments once, then
      └─ Operator.__call__                under exporters, and where torch.compile is faster: the reference, inlined;
           │                              where nobody but autograd watches: a kernel, straight away
           └─ torch.ops.downmix.<name>    otherwise one torch operator, so modes, profilers and compilers see it
                ├─ kernels/numba/<stem>   on the CPU  ┐ where a kernel exists and its `why_not`
                ├─ kernels/triton/<stem>  on CUDA     ┘ has nothing to say against these inputs
                └─ the reference          everywhere else, and under use_backend("reference")

The reference is plain torch code and the only place where an operator's meaning stands. It also is the shape
rule (`register_fake`), the gradient (differentiated by autograd, so second derivatives are right too) and the
decomposition that exporters see.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ._watching import beyond_kernels, for_autograd, takes_plain_torch, watched

BACKENDS = ("auto", "reference")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in float8 torch itself knows no maximum
_KERNEL_FOLDERS = {"cpu": "numba", "cuda": "triton"}
_library = torch.library.Library("downmix", "DEF")
_backend = "auto"
_log: list[str] | None = None  # where explain_backend listens


class use_backend:
    """Chooses how downmix's operators are computed in all threads, from here on or within a ``with`` block.

    Args:
        name (str): ``"auto"`` runs a fused kernel where one fits the input, ``"reference"`` always the plain torch
            definition: slower, for tests and bug reports.

    Raises:
        ValueError: if ``name`` is no known backend.

    Example:
        >>> import torch, downmix
        >>> x, p = torch.randn(1, 8, 2, 2), torch.rand(1, 2)
        >>> with downmix.use_backend("reference"):
        ...     y = downmix.pick_or_mix(x, p, 4)
    """

    def __init__(self, name: str):
        check_choice("backend", name, BACKENDS)
        self._name, self._before, self._in_force = name, [], False
        self.__enter__()
        self._in_force = True

    def __enter__(self) -> None:
        global _backend
        if not self._in_force:  # else since __init__
            self._before.append(_backend)
            _backend = self._name
        self._in_force = False

    def __exit__(self, *exc_info: object) -> None:
        global _backend
        _backend = self._before.pop()


def explain_backend(op: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Says which kernel runs for these arguments, or why the reference does.

    It hears the operators of all threads meanwhile; one call inside another hears its own alone.

    Args:
        op (Callable): a public function or module of downmix, such as ``downmix.pick_or_mix``.
        *args, **kwargs: what it would be called with. It is called, and its output thrown away.

    Returns:
        A sentence for each operator inside.

    Example:
        >>> import torch, downmix
        >>> explain_backend(downmix.pick_or_mix, torch.randn(1, 8, 2, 2), torch.rand(1, 2), 4)
        'pick_or_mix runs downmix.kernels.numba.pix'
        >>> explain_backend(downmix.pick_or_mix, *(torch.empty(s, device="meta") for s in ((1, 8, 2, 2), (1, 2))), 4)
        "pick_or_mix runs its reference: it has no kernel for the device 'meta'"
    """
    global _log
    heard: list[str] = []
    outer, _log = _log, heard
    try:
        op(*args, **kwargs)
        return "\n".join(dict.fromkeys(heard)) or "no operator of downmix runs here"
    finally:
        _log = outer


class Operator:
    """One operator: ``torch.ops.downmix.<name>``, called like its reference.

    Args:
        reference (Callable): the definition, in torch code that autograd and torch.export can follow. Its annotations
            give the schema; leading Tensor arguments are differentiable, all others are constants.
        stem (str): the file that holds the kernels, in ``kernels/numba`` and ``kernels/triton``.
        operations (Callable): the number of element operations, from the arguments with shapes in place of tensors;
            what ``torch.utils.flop_counter.FlopCounterMode`` then reports.
        compiles_well (Callable): whether torch.compile makes the reference as fast as a kernel for these arguments;
            inlined it fuses with what is around it. Where there is no kernel, it always is.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],
        *,
        stem: str,
        operations: Callable[..., int],
        compiles_well: Callable[..., bool] = lambda *args: False,
    ):
        self.name, self.reference, self.stem, self.operations = name, reference, stem, operations
        self.compiles_well = compiles_well
        self._devices = [
            device
            for device, folder in _KERNEL_FOLDERS.items()
            if importlib.util.find_spec(f"downmix.kernels.{folder}.{stem}")
        ]
        schema = torch.library.infer_schema(reference, mutates_args=())
        self._tensors = schema.partition("->")[0].count("Tensor ")
        _library.define(name + schema)
        _library.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"downmix::{name}", reference, lib=_library)
        torch.library.register_autograd(
            f"downmix::{name}", self._backward, setup_context=self._save_inputs, lib=_library
        )
        # The kernels' gradient is an operator too, so that a compiled training step can hold it.
        _library.define(
            f"{name}_backward" + schema.replace("(", "(Tensor grad, ", 1).replace("-> Tensor", "-> Tensor[]")
        )
        _library.impl(f"{name}_backward", self._run_backward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"downmix::{name}_backward", _empty_gradients, lib=_library)
        self._torch_op = getattr(torch.ops.downmix, name)
        self._torch_op_backward = getattr(torch.ops.downmix, f"{name}_backward")
        self._flops_registered = False

    def __call__(self, *args: Any) -> Tensor:
        if takes_plain_torch():
            return self.reference(*args)
        if torch.compiler.is_compiling():
            return (self.reference if self.inlines(*args) else self._torch_op)(*args)
        if not self._flops_registered:
            self._register_flops()
        tensors = args[: self._tensors]
        # Torch's dispatcher, and what torch.library does for autograd, take longer than a small kernel.
        if watched(tensors):
            self._explain(self.kernel(*args))
            return self._torch_op(*args)
        if not for_autograd(tensors):
            return self.run(*args)
        kernel = self.kernel(*args)
        self._explain(kernel)
        return self._torch_op(*args) if isinstance(kernel, str) else _WithGradient.apply(*args, self, kernel)

    def run(self, *args: Any) -> Tensor:
        """As a call, where nobody is watching, the tensors are plain, and nothing is for autograd."""
        if torch.autograd._profiler_enabled():
            return self._torch_op(*args)
        kernel = self.kernel(*args)
        self._explain(kernel)
        return self._torch_op(*args) if isinstance(kernel, str) else self._launch(kernel, *args)

    def _launch(self, kernel: ModuleType, *args: Any) -> Tensor:
        return kernel.forward(*args)

    def _explain(self, kernel: ModuleType | str) -> None:
        log = _log  # another thread may take it away
        if log is not None:
            runs = f"its reference: {kernel}" if isinstance(kernel, str) else kernel.__name__
            log.append(f"{self.name} runs {runs}")

    def inlines(self, *args: Any) -> bool:
        """Whether graphs of torch.compile hold the reference, and not the operator."""
        return args[0].device.type not in self._devices or self.compiles_well(*args)

    def _register_flops(self) -> None:
        # Only once somebody counts: importing the counter loads triton, which `import downmix` must not.
        if counter := sys.modules.get("torch.utils.flop_counter"):
            formula = counter.register_flop_formula(self._torch_op)(self.operations)
            self._flops_registered = True
            mode: Any
            for mode in _get_current_dispatch_mode_stack():
                if isinstance(mode, counter._FlopCounterMode):  # which copied the registry when it began
                    mode.counter.flop_registry[self._torch_op] = formula

    def kernel(self, *args: Any, stem: str | None = None) -> ModuleType | str:
        """The kernel module that will run for these arguments, or the sentence why none will.

        ``stem`` names another file of kernels than the operator's own.
        """
        if _backend == "reference":
            return 'use_backend("reference") is in force'
        device = args[0].device.type
        module = _kernel_module(_KERNEL_FOLDERS.get(device, device), stem or self.stem)
        if module is None:
            return f"it has no kernel for the device {device!r}"
        return module if isinstance(module, str) else module.why_not(*args) or module

    def _run(self, *args: Any) -> Tensor:
        kernel = self.kernel(*args)
        self._explain(kernel)  # a compiled graph comes here alone; what __call__ said already is shown once
        return self.reference(*args) if isinstance(kernel, str) else kernel.forward(*args)

    def _run_backward(self, grad: Tensor, *args: Any) -> list[Tensor]:
        kernel = self.kernel(*args)
        if isinstance(kernel, str):  # use_backend("reference") with a graph that was compiled for kernels
            tensors, constants = [t.detach().requires_grad_() for t in args[: self._tensors]], args[self._tensors :]
            needed: Any = [True] * len(tensors)
            found: Any = differentiate(lambda *inputs: self.reference(*inputs, *constants), tensors, grad, needed)
            return [torch.empty_like(t).copy_(gradient) for t, gradient in zip(args, found, strict=False)]
        return list(kernel.backward(grad, *args))

    def _save_inputs(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: self._tensors])
        ctx.constants = inputs[self._tensors :]

    def _backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, constants = ctx.saved_tensors, ctx.constants
        kernel = self.kernel(*tensors, *constants)
        if isinstance(kernel, str) or beyond_kernels(grad):
            needed = ctx.needs_input_grad[: len(tensors)]
            gradients = differentiate(lambda *inputs: self.reference(*inputs, *constants), tensors, grad, needed)
        elif torch.compiler.is_compiling() or watched((grad, *tensors)):
            gradients = self._torch_op_backward(grad, *tensors, *constants)
        else:
            gradients = kernel.backward(grad, *tensors, *constants)
        return (*gradients, *(None for _ in constants))


class _WithGradient(torch.autograd.Function):
    """A kernel for autograd, called with the operator's arguments, the operator and the kernel."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        inputs, (ctx.operator, kernel) = args[:-2], args[-2:]
        output = kernel.forward(*inputs)
        ctx.operator._save_inputs(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.operator._backward(ctx, *grads), None, None)


class InplaceOperator(Operator):
    """An operator that writes over its first argument, if it has a second, and is only ever `run`: torch knows none of
    its name."""

    def __init__(self, name: str, reference: Callable[..., Tensor], *, stem: str):
        self.name, self.reference, self.stem = name, reference, stem
        self._torch_op = reference

    def _launch(self, kernel: ModuleType, *args: Any) -> Tensor:
        output = super()._launch(kernel, *args)
        if args[1] is not None and not args[0].is_inference():  # of which autograd counts no versions
            torch.autograd.graph.increment_version(args[0])  # so that who saved it hears that it was written over
        return output


def differentiate(
    definition: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of those tensors that need one, by autograd, so that they have gradients too."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: a caller's hooks must not fire on this inner pass.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        wanted: Any = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        for tensor in wanted:
            if not tensor.requires_grad:  # frozen since the forward pass
                tensor.requires_grad_()
        output = definition(*inputs)
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=create_graph, materialize_grads=True))
    return tuple(next(found) if need else None for need in needed)


def _empty_gradients(grad: Tensor, *args: Any) -> list[Tensor]:
    return [torch.empty_like(value) for value in args if isinstance(value, Tensor)]


@functools.cache
def _kernel_module(folder: str, stem: str) -> ModuleType | str | None:
    # Imported at the first call, so that `import downmix` loads neither numba nor triton, which not every torch brings.
    package = f"downmix.kernels.{folder}"
    try:
        found = importlib.util.find_spec(f"{package}.{stem}")
    except ModuleNotFoundError:  # no such folder
        return None
    try:
        return importlib.import_module(found.name) if found else None
    except ModuleNotFoundError as error:
        return f"its kernel for this device needs {error.name}, which is not installed"


def check_choice(argument: str, value: object, known: tuple[str, ...]) -> None:
    """Raises a ValueError that lists the known options unless ``value`` is one of them."""
    if value not in known:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, known))}, got {value!r}")


def node_of(function: Callable[..., Tensor], *args: Any, **options: Any) -> Any:
    """A call as a node of the graph that torch.fx traces, whose stand-ins for tensors have neither shape nor dtype."""
    tracer = next(arg.tracer for arg in args if isinstance(arg, fx.Proxy))
    return tracer.create_proxy("call_function", function, args, options)


def check_floating(argument: str, value: object) -> None:
    """Raises a TypeError unless ``value`` is a dense tensor of one of ``DTYPES``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a floating-point tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{argument} must be a tensor of float16, bfloat16, float32 or float64, got {value.dtype}; convert it "
            "with .float()"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{argument} must be a dense tensor, got one of {value.layout}; convert it with .to_dense()")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: the widest of all, and float32 at least."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of an output: channels_last (2d or 3d) where channels of ``x`` lie side by side, else contiguous.

    Also contiguous under torch.func, whose vmap knows no other.
    """
    if torch._C._are_functorch_transforms_active():
        return torch.contiguous_format
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is None or x.is_contiguous() or x.stride(1) != 1 or x.shape[1] == 1:
        return torch.contiguous_format
    # Slices of a channels_last map are channels_last too: steps fall from H to W, and W steps over all channels. One
    # along a dimension of size 1 is never taken, and may be anything.
    steps = [step for size, step in zip(x.shape[2:], x.stride()[2:], strict=True) if size > 1]
    if not steps:
        return torch.contiguous_format
    steps.append(x.shape[1])
    return last if all(a >= b for a, b in pairwise(steps)) else torch.contiguous_format
