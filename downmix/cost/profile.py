"""The cost of a network, layer by layer and in total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from ..ops._define import check_choice
from ._trace import Call, trace
from .conventions import CONVENTIONS, count_macs
from .memory import count_activation_bytes, peak_memory_bytes
from .roofline import Device


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        params: number of trainable values.
        conv_params: those in convolutions and in what takes their place (every weight of four dimensions).
        macs: operations by the convention of the papers' tables, see :func:`count_macs`.
        activation_bytes: memory that autograd keeps from the forward to the backward pass.
    """

    params: int
    conv_params: int
    macs: int
    activation_bytes: int


def measure_cost(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Cost:
    """Counts what one image of ``input_size`` (channels, height, width) costs; the network is left as it was."""
    return Cost(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        conv_params=sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() == 4),
        macs=count_macs(model, input_size),
        activation_bytes=count_activation_bytes(model, input_size),
    )


@dataclass(frozen=True)
class Layer:
    """The cost of a module itself, without its children, or of several modules taken together.

    Attributes:
        name: its path in the network.
        kind: its class.
        output: the shape of its last output, if that is one tensor.
        params: its trainable values.
        ptflops: operations by that convention, None where it has no formula for such a module.
        calls: the operators that it ran.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    params: int
    ptflops: int | None
    calls: list[Call] = field(repr=False)

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and matrix products."""
        return sum(call.macs for call in self.calls)

    @property
    def elements(self) -> Counter[str]:
        """Element operations by kind: comparisons, additions, exponentials …"""
        total: Counter[str] = Counter()
        for call in self.calls:
            total.update(call.elements or {})
        return +total

    @property
    def read_bytes(self) -> int:
        """Bytes that its operators read, parameters too, as if no cache kept anything between operators."""
        return sum(call.read_bytes for call in self.calls)

    @property
    def written_bytes(self) -> int:
        """Bytes that its operators write."""
        return sum(call.written_bytes for call in self.calls)

    @property
    def intensity(self) -> float:
        """Operations a byte, a multiply-add taken as two."""
        moved = self.read_bytes + self.written_bytes
        return sum(map(_arithmetic, self.calls)) / moved if moved else 0.0

    def operations(self, convention: str) -> int:
        """Operations by one of the conventions of :func:`count_macs`."""
        check_choice("convention", convention, CONVENTIONS)
        if convention == "ptflops":
            return self.ptflops or 0
        return self.macs if convention == "macs" else sum(call.paper or 0 for call in self.calls)

    def uncounted(self, convention: str) -> Counter[str]:
        """Operators that did arithmetic, or may have, that the convention gives no figure for; how often each ran.

        By ``"macs"`` these are those whose element operations aren't known either.
        """
        check_choice("convention", convention, CONVENTIONS)
        if convention == "macs":
            missed: Iterable[Call] = (call for call in self.calls if call.elements is None and not call.macs)
        elif convention == "paper":
            missed = (call for call in self.calls if call.paper is None and _may_compute(call))
        else:
            known = self.ptflops is not None  # its formula covers all that the module runs, but never our operators
            missed = (c for c in self.calls if _may_compute(c) and (not known or c.op.startswith("downmix.")))
        return Counter(call.op for call in missed)

    def roofline_ms(self, device: Device) -> float:
        """The least time that ``device`` needs for its operators, one after the other."""
        return sum(device.time_ms(_arithmetic(call), call.read_bytes + call.written_bytes) for call in self.calls)


def join(name: str, layers: list[Layer]) -> Layer:
    """Several layers as one."""
    counted = [layer.ptflops for layer in layers if layer.ptflops is not None]
    return Layer(
        name=name,
        kind="",
        output=next((layer.output for layer in reversed(layers) if layer.calls), None),
        params=sum(layer.params for layer in layers),
        ptflops=sum(counted) if counted else None,
        calls=[call for layer in layers for call in layer.calls],
    )


@dataclass(frozen=True)
class Profile:
    """The cost of a batch of images.

    Attributes:
        layers: in the order in which they run; modules that did nothing and hold nothing are left out.
        inference_bytes, training_bytes: most activations alive at one time, see :func:`peak_memory_bytes`.
        activation_bytes: what autograd keeps between forward and backward pass, see :func:`count_activation_bytes`.
    """

    layers: list[Layer]
    inference_bytes: int
    training_bytes: int
    activation_bytes: int

    @property
    def total(self) -> Layer:
        return join("total", self.layers)

    def uncounted(self, convention: str) -> Counter[str]:
        """See :meth:`Layer.uncounted`."""
        return sum((layer.uncounted(convention) for layer in self.layers), Counter())


def profile(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), *, batch_size: int = 1) -> Profile:
    """What a batch of images costs, layer by layer; the network is left as it was.

    Operations and bytes are those of inference, operator by operator as eager torch runs them. Memory is measured on
    the network's own device.

    Args:
        model: any module.
        input_size: channels, height and width of an image.
        batch_size: number of images.

    Returns:
        Profile: the costs of the whole batch.

    Raises:
        ValueError: if ``batch_size`` is below 1, or ``input_size`` no positive sizes.
        TypeError: if ``model`` is no module, or something in it is scripted or traced.

    Example:
        >>> found = profile(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU()), (3, 4, 4))
        >>> [(layer.name, layer.macs, dict(layer.elements)) for layer in found.layers]
        [('0', 384, {}), ('1', 0, {'compare': 128})]
    """
    return Profile(
        layers=_layers(model, input_size, batch_size),
        inference_bytes=peak_memory_bytes(model, input_size, batch_size=batch_size),
        training_bytes=peak_memory_bytes(model, input_size, batch_size=batch_size, training=True),
        activation_bytes=batch_size * count_activation_bytes(model, input_size),
    )


def _layers(model: nn.Module, input_size: tuple[int, int, int], batch_size: int) -> list[Layer]:
    found, modules = trace(model, input_size, batch_size), dict(model.named_modules())
    own = {id(p): name for name, module in modules.items() for p in module.parameters(recurse=False)}
    params: Counter[str] = Counter()
    for parameter in model.parameters():  # each once, though several modules may share it
        params[own[id(parameter)]] += parameter.numel() if parameter.requires_grad else 0
    others = (name for name in modules if name not in found.calls)
    names = [*found.calls, *(name for name in others if params[name] or found.ptflops.get(name))]
    return [
        Layer(
            name=name,
            kind=type(modules[name]).__name__,
            output=found.outputs.get(name),
            params=params[name],
            ptflops=found.ptflops.get(name),
            calls=found.calls.get(name, []),
        )
        for name in names
    ]


def _arithmetic(call: Call) -> int:
    return 2 * call.macs + sum((call.elements or {}).values())


def _may_compute(call: Call) -> bool:
    return call.macs > 0 or call.elements is None or sum(call.elements.values()) > 0
