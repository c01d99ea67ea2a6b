"""Which layers are squeezes and pools that a replacement can take over, and why the others are not."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..layers._places import names_of
from .replace import POOL_CLASSES, is_adaptive, pool_dims, sizes
from .report import Left, describe
from .trace import Step, Trace, runs_as_torchs

Where = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

_RECTIFIERS = {"relu", "hardtanh"}  # they change nothing after PiX, where what goes in is rectified already
_GATES = {"sigmoid", "hardsigmoid", "tanh", "_softmax"}
_FUNCTIONAL_POOLS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"}


@dataclass
class Choice:
    """A layer that will be replaced, and those behind it that go.

    Attributes:
        name, module: the layer.
        drop: the norm and activation behind it that become Identity, by name.
        note: what stays though it belonged to the squeeze; often empty.
        channels: that go into the layer; None if it runs on maps of different numbers of channels.
    """

    name: str
    module: nn.Module
    channels: int | None
    drop: dict[str, nn.Module] = field(default_factory=dict)
    note: str = ""

    @property
    def was(self) -> str:
        """All that goes, in a few words."""
        return " + ".join(describe(module) for module in (self.module, *self.drop.values()))


class Chooser:
    """Sorts a traced network's layers into choices and layers left.

    Args:
        network: the traced network.
        trace: its steps.
        where: patterns for names, or a function of name and module; None takes all. A layer that a pattern names in
            full is chosen even where it would stay by default.
    """

    def __init__(self, network: nn.Module, trace: Trace, where: Where):
        self.network, self.trace, self.where = network, trace, where
        self.names = names_of(network)
        self.choices: list[Choice] = []
        self.left: list[Left] = []
        for pattern in self._patterns:
            if not fnmatch.filter((name for names in self.names.values() for name in names), pattern):
                raise ValueError(f"where={pattern!r} matches no module of {type(network).__name__}")

    def choose_squeezes(self, min_reduction: int) -> None:
        for conv in self._layers(nn.Conv2d):
            assert isinstance(conv, nn.Conv2d)
            if conv.kernel_size == (1, 1):
                reason = self._never(conv) or _no_squeeze(conv, min_reduction) or self._unclear_calls(conv)
                self._sort(conv, reason, self._squeeze)

    def choose_pools(self) -> None:
        for pool in self._layers(POOL_CLASSES):
            self._sort(pool, self._never(pool) or _no_pool(pool), self._pool)
        for step in self.trace.steps:
            # Torch's modules and ours call functions themselves, and those derived from its pools are in the report.
            if step.module is None or not _is_known(step.module):
                for pool in dict.fromkeys(op for op in step.ops if op in _FUNCTIONAL_POOLS):
                    name = f"{pool} in {step.name or 'the network'}"
                    self.left.append(Left(name, pool, "is called as a function, which no module can replace"))

    def _layers(self, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterable[nn.Module]:
        """Layers of these kinds in the order they run; last, those that don't run."""
        found = [module for module in self.names if isinstance(module, kinds) and module is not self.network]
        order = {module: i for i, module in enumerate(self.trace.calls)}
        return sorted(found, key=lambda module: order.get(module, len(order)))

    def _sort(self, module: nn.Module, reason: str, choose: Callable[[nn.Module], tuple[Choice, str]]) -> None:
        name = self.names[module][0]
        if not reason and not self._selected(name, module):
            reason = "is not selected by where"
        if not reason:
            choice, reason = choose(module)
            if not reason or name in self._patterns:
                self.choices.append(choice)
                return
        self.left.append(Left(name, describe(module), reason))

    @property
    def _patterns(self) -> Sequence[str]:
        if self.where is None or callable(self.where):
            return []
        return [self.where] if isinstance(self.where, str) else self.where

    def _selected(self, name: str, module: nn.Module) -> bool:
        if callable(self.where):
            return self.where(name, module)
        return self.where is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns)

    def _never(self, module: nn.Module) -> str:
        if not runs_as_torchs(module):
            return f"is a {type(module).__qualname__}, whose forward may differ from torch's"
        if len(self.names[module]) > 1:
            return "stands in the network under several names"
        if module not in self.trace.calls:
            return "did not run on the example input in evaluation mode"
        return ""

    def _unclear_calls(self, module: nn.Module) -> str:
        return "runs more than once in a forward pass" if len(self.trace.calls[module]) > 1 else ""

    def _pool(self, pool: nn.Module) -> tuple[Choice, str]:
        is_global = all(set(step.output_shape[-pool_dims(pool) :]) == {1} for step in self.trace.calls[pool])
        reason = "is a global pool" if is_global else "is an adaptive pool" if is_adaptive(pool) else ""
        return self._choice(pool), reason

    def _choice(self, module: nn.Module) -> Choice:
        dims = 2 if isinstance(module, nn.Conv2d) else pool_dims(module)
        channels = {step.input_shape[-dims - 1] for step in self.trace.calls[module]}
        return Choice(self.names[module][0], module, channels.pop() if len(channels) == 1 else None)

    def _squeeze(self, conv: Any) -> tuple[Choice, str]:
        (step,) = self.trace.calls[conv]
        choice = self._choice(conv)
        last, stays = self._follow(step, choice)
        if step.input_shape[-2:] == (1, 1):
            return choice, "works on a 1×1 map, as in squeeze-and-excite or a classifier"
        if self.trace.is_head(step):
            return choice, "has no layer with weights behind it: a head"
        if conv.out_channels == 1:
            return choice, "gives a single channel: a map of attention or a head"
        if len(step.readers) > 1:
            return choice, "gives its output to more than one layer"
        if last.readers and all(set(reader.ops) <= _GATES for reader in last.readers):
            return choice, "computes a gate: a sigmoid, tanh or softmax follows"
        if stays is not None:
            choice.note = f"{stays.ops[-1]} stays ({self._why_it_stays(stays)})"
            if "norm" in stays.parts or not _RECTIFIERS & set(stays.ops):
                return choice, f"is followed by {stays}, which {self._why_it_stays(stays)}"
        elif not choice.drop and not _is_preactivated(step):
            return choice, "has no norm or activation to itself: a projection"
        return choice, ""

    def _follow(self, step: Step, choice: Choice) -> tuple[Step, Step | None]:
        """Adds the norm and activation behind ``step`` to ``choice``.

        Returns:
            The last step that goes, and the norm or activation after it that can't go, if any.
        """
        seen: set[str] = set()
        while len(step.readers) == 1:
            after = step.readers[0]
            if not after.parts or after.parts & seen or after.sources != [step]:
                break
            if self._why_it_stays(after):
                return step, after
            assert after.module is not None
            choice.drop[after.name] = after.module
            seen |= after.parts
            step = after
        return step, None

    def _why_it_stays(self, step: Step) -> str:
        if step.module is None:
            return "is called as a function"
        calls = [call for call in self.trace.calls[step.module] if call.name == step.name]
        return "also runs elsewhere" if len(calls) > 1 else ""


def _no_squeeze(conv: nn.Conv2d, min_reduction: int) -> str:
    if conv.in_channels < conv.out_channels * min_reduction:
        return f"does not reduce the channels by {min_reduction} or more"
    if conv.in_channels % conv.out_channels:
        return "reduces the channels by a ratio that is no integer"
    if conv.stride != (1, 1) or conv.groups != 1 or conv.padding not in ((0, 0), "valid", "same"):
        return "has a stride, groups or padding"
    own = dict(conv.named_parameters(recurse=False))
    if "weight" not in own or (conv.bias is not None and "bias" not in own):
        return "has a weight or bias that something else computes, such as weight_norm or prune"
    return ""


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, POOL_CLASSES) or type(module).__module__.startswith(("torch.", "downmix."))


def _no_pool(pool: Any) -> str:
    if getattr(pool, "return_indices", False):
        return "returns indices"
    if not is_adaptive(pool) and {*sizes(pool.kernel_size), *sizes(pool.stride)} == {1}:
        return "has windows of one value and stride 1, so it pools nothing"
    if getattr(pool, "divisor_override", None):
        return "has a divisor of its own, so it is no average"
    return ""


def _is_preactivated(step: Step) -> bool:
    """Whether norm, activation and the convolution run in this order, as in DenseNet."""
    parts: set[str] = set()
    while len(step.sources) == 1 and step.sources[0].readers == [step] and step.sources[0].parts:
        step = step.sources[0]
        parts |= step.parts
    return parts >= {"norm", "activation"}
