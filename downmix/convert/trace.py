"""Runs a network once and notes which layer reads what, so that names and definition order don't matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..cost._run import evaluation, tensors_in
from ..layers._calls import has_methods_of
from ..layers._places import names_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_ACTIVATIONS = {
    "celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "_prelu_kernel", "relu", "rrelu_with_noise",
    "silu", "softplus",
}  # fmt: skip
_BESIDE = {"detach", "empty_like", "view"}  # what runs beside an activation in its module
_METHODS = ("__call__", "forward", "_conv_forward")  # that decide what a layer computes
_WEIGHTED = {"convolution", "addmm", "mm", "bmm", "baddbmm"}


@dataclass(eq=False)
class Step:
    """One call of a layer, or of a function between layers.

    Attributes:
        name: of the layer, where it has several the one that its caller knows it by; for a function, of the module in
            whose forward it is called.
        module: the layer, None for a function.
        ops: names of the ATen operators that ran, without a trailing underscore.
        sources, readers: the steps whose outputs this one reads, and those that read its outputs.
        input_shape, output_shape: of the layer's first tensors.
    """

    name: str
    module: nn.Module | None
    ops: list[str] = field(default_factory=list)
    sources: list[Step] = field(default_factory=list)
    readers: list[Step] = field(default_factory=list)
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def parts(self) -> set[str]:
        """What a squeeze is followed by: ``"norm"``, ``"activation"``, or both in one layer as in timm."""
        activates = bool(_ACTIVATIONS & set(self.ops))
        if self.module is not None and is_norm(self.module):
            return {"norm", "activation"} if activates else {"norm"}
        return {"activation"} if activates and set(self.ops) <= _ACTIVATIONS | _BESIDE else set()

    def __str__(self) -> str:
        return self.name if self.module is not None else f"{self.ops[0]} in {self.name or 'the network'}"


class Trace:
    """The steps of one forward pass, in the order they ran."""

    def __init__(self, steps: list[Step]):
        self.steps = steps
        self.calls: dict[nn.Module, list[Step]] = {}
        for step in steps:
            if step.module is not None:
                self.calls.setdefault(step.module, []).append(step)
        self._before_weights: set[Step] = set()
        for step in reversed(steps):
            if any(reader in self._before_weights or _WEIGHTED & set(reader.ops) for reader in step.readers):
                self._before_weights.add(step)

    def is_head(self, step: Step) -> bool:
        """Whether nothing with weights comes after ``step`` on the way to the output."""
        return step not in self._before_weights


def runs_as_torchs(module: nn.Module) -> bool:
    """Whether a layer is one of torch's, or of a class derived from one that only builds it in another way."""
    torchs = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules"))
    return has_methods_of(module, torchs, *_METHODS)


def is_norm(module: nn.Module) -> bool:
    # timm's and torchvision's frozen BatchNorms inherit from nn.Module alone.
    return isinstance(module, _NORMS) or isinstance(getattr(module, "running_var", None), Tensor)


def trace(model: nn.Module, args: tuple[Any, ...]) -> Trace:
    """Runs ``model(*args)`` in evaluation mode without gradients; the network is left as it was."""
    recorder = _Recorder()
    with evaluation(model), torch.no_grad(), recorder.listening(model), recorder:
        output = model(*args)
    recorder.read(Step("", None), [output])
    return Trace([step for step in recorder.steps if step not in recorder.unread])


class _Recorder(TorchDispatchMode):
    """Sees every ATen operator, and through hooks the layer it belongs to.

    A layer is a module without children, or a norm, which in timm holds its activation. What runs in the network's own
    hooks is no step, unless something outside of them reads what came of it: so who only looks on changes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._inside: list[str] = []
        self._layer: Step | None = None
        self._hooks = 0  # of how many modules the network's own hooks are at work
        self.unread: dict[Step, list[Any]] = {}  # what ran in them, and what that read
        self._producer = WeakIdKeyDictionary()  # weak, so that an activation lives no longer than it would

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as handles:
            for module, known in names_of(model).items():
                # A weight that parametrize computes has modules for that within its layer.
                atomic = is_norm(module) or all(name == "parametrizations" for name, _ in module.named_children())
                enter, leave = self._layer_hooks(known, module) if atomic else self._container_hooks(known[0])
                for ours in (
                    module.register_forward_pre_hook(self._hooks_begin, prepend=True),
                    module.register_forward_pre_hook(self._hooks_end),
                    module.register_forward_pre_hook(enter),
                    module.register_forward_hook(self._hooks_begin, prepend=True),
                    module.register_forward_hook(leave, prepend=True),
                    module.register_forward_hook(self._hooks_end),
                ):
                    handles.callback(ours.remove)
            yield

    def _hooks_begin(self, *_: Any) -> None:
        self._hooks += 1

    def _hooks_end(self, *_: Any) -> None:
        self._hooks -= 1

    def _container_hooks(self, name: str) -> tuple[Any, Any]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:  # what a hook returns would be the output
            self._inside.pop()

        return lambda module, args: self._inside.append(name), leave

    def _layer_hooks(self, names: list[str], layer: nn.Module) -> tuple[Any, Any]:
        def enter(module: nn.Module, args: Any) -> None:
            if self._layer is None:
                here = [name for name in names if name.rpartition(".")[0] == self._caller]
                self._layer = Step(here[0] if len(here) == 1 else names[0], layer, input_shape=_first_shape(args))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self._layer is not None and self._layer.module is layer:
                self._layer.output_shape = _first_shape(output)
                self._layer = None

        return enter, leave

    @property
    def _caller(self) -> str:
        return self._inside[-1] if self._inside else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        function = Step(self._caller, None)
        step = function if self._hooks else self._layer or function
        if not step.ops:  # a layer that computes nothing, such as Identity, is no step
            self.steps.append(step)
        if self._hooks:
            self.unread[step] = [self._producer[t] for t in tensors_in((args, kwargs)) if t in self._producer]
        else:
            self.read(step, (args, kwargs))
        step.ops.append(func.overloadpacket.__name__.removesuffix("_"))
        for tensor in tensors_in(output):
            self._producer[tensor] = step
        return output

    def read(self, step: Step, values: Any) -> None:
        """Notes that ``step`` reads the tensors in ``values``."""
        for tensor in tensors_in(values):
            source = self._producer.get(tensor)
            if source is not None and source is not step:
                self._link(source, step)

    def _link(self, source: Step, step: Step) -> None:
        for earlier in self.unread.pop(source, []):
            self._link(earlier, source)
        if step not in source.readers:
            source.readers.append(step)
            step.sources.append(source)


def _first_shape(values: Any) -> tuple[int, ...]:
    return next((tensor.shape for tensor in tensors_in(values)), ())
