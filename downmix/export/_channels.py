"""Finds out which channel dimensions of a network must keep one order, and which parameters carry that order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

# Under torch.export a squeeze is one node: what it reads, which one it is, and how many channels it gives.
_library = torch.library.Library("downmix_export", "DEF")
_library.define("site(Tensor x, int number, int channels) -> Tensor")


def _site(x: Tensor, number: int, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], channels, *x.shape[2:])


torch.library.register_fake("downmix_export::site", _site, lib=_library)


class Site(nn.Module):
    """Stands where a squeeze was while the network is traced."""

    def __init__(self, number: int, channels: int):
        super().__init__()
        self.number, self.channels = number, channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.downmix_export.site(x, self.number, self.channels)


# What leaves the order of channels as it is, whatever their number; sums and products may have two operands.
_PLAIN = {
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "sigmoid", "sigmoid_", "tanh", "silu", "silu_", "gelu",
    "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_", "elu", "elu_", "clamp",
    "clamp_min", "dropout", "dropout_", "feature_dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "clone", "contiguous", "to", "detach",
    "alias", "add", "add_", "sub", "mul", "mul_", "div", "maximum", "minimum", "pad", "constant_pad_nd",
}  # fmt: skip
_RESHAPES = {"flatten", "view", "reshape", "unsqueeze", "squeeze", "_unsafe_view"}


@dataclass
class Channels:
    """The channel dimensions of a traced network.

    Dimensions that must share an order are a group, which has a number.

    Attributes:
        fixed: groups whose order something depends on.
        carriers: for each group the parameters and buffers that carry it, as name and dimension.
        sites: what each squeeze reads and gives, as groups.
    """

    fixed: set[int]
    carriers: dict[int, set[tuple[str, int]]]
    sites: dict[int, tuple[int, int]]


def find_channels(program: torch.export.ExportedProgram) -> Channels:
    """Reads a program traced with :class:`Site` in the place of squeezes; channels are dimension 1 throughout.

    An operator that is not known to keep the order fixes the channels it reads and gives, so that what this does not
    understand stays as it is.
    """
    return _Finder(program).find()


class _Finder:
    def __init__(self, program: torch.export.ExportedProgram):
        self.nodes = list(program.graph.nodes)
        signature = program.graph_signature
        self.names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.parent: list[int] = []
        self.of: dict[Any, int] = {}
        self.fixed: set[int] = set()
        self.sites: dict[int, tuple[fx.Node, fx.Node]] = {}

    def find(self) -> Channels:
        for node in self.nodes:
            if node.op == "call_function":
                self.visit(node)
            elif node.op == "output":
                self.fix(*node.all_input_nodes)
            elif node.name not in self.names:  # an input of the network, or a constant
                self.fix(node)
        carriers: dict[int, set[tuple[str, int]]] = {}
        for key, group in self.of.items():
            if isinstance(key, tuple):
                carriers.setdefault(self.root(group), set()).add(key)
        sites = {number: (self.group(read), self.group(written)) for number, (read, written) in self.sites.items()}
        return Channels({self.root(group) for group in self.fixed}, carriers, sites)

    def visit(self, node: fx.Node) -> None:
        name = _name(node)
        args: Any = node.args
        if name == "site":
            # One that runs again has the same weights, so its maps share one order.
            read, written = self.sites.setdefault(args[1], (args[0], node))
            self.tie(read, args[0])
            self.tie(written, node)
            if _shape(args[0])[1] == _shape(node)[1]:  # a gate, which keeps the order
                self.tie(node, args[0])
        elif name in ("conv2d", "linear") and self.weights(name, node, args):
            pass
        elif name in _PLAIN | _RESHAPES | {"mean"} and self.keeps(name, node, args):
            self.tie(node, *self.maps(args))
        elif name == "batch_norm" and not any(self.parameter(value) is None for value in args[1:5] if value):
            self.tie(node, args[0], *((self.parameter(value), 0) for value in args[1:5] if value))
        elif self.parameter(node):
            pass  # one in another shape, which who reads it looks through
        else:
            self.fix(node, *node.all_input_nodes)

    def weights(self, name: str, node: fx.Node, args: Any) -> bool:
        x, weight, bias = args[0], self.parameter(args[1]), args[2] if len(args) > 2 else None
        groups = args[6] if len(args) > 6 else 1
        if weight is None or (bias is not None and self.parameter(bias) is None) or len(_shape(x)) not in (2, 4):
            return False
        if name == "linear" and len(_shape(x)) != 2:
            return False
        if groups == 1:
            self.tie(x, (weight, 1))
        elif groups == _shape(x)[1] == _shape(node)[1]:  # depthwise
            self.tie(x, node)
        else:
            return False
        self.tie(node, (weight, 0), *([(self.parameter(bias), 0)] if bias is not None else []))
        return True

    def keeps(self, name: str, node: fx.Node, args: Any) -> bool:
        """Whether channel i of the output comes from channel i of every map that is read."""
        maps = list(self.maps(node.args))
        channels = _shape(node)[1:2]
        if any(self.parameter(source) for source in node.all_input_nodes) or not channels:
            return False
        if name == "mean":
            return set(args[1]) <= {2, 3, -1, -2} and len(_shape(maps[0])) == 4
        if name in ("pad", "constant_pad_nd") and len(args[1]) > 4:  # more than height and width
            return False
        if name in _RESHAPES:
            return _shape(maps[0])[:2] == _shape(node)[:2]
        return all(len(_shape(x)) == len(_shape(node)) and _shape(x)[1] == channels[0] for x in maps)

    def maps(self, args: tuple[Argument, ...]) -> Iterator[fx.Node]:
        return (value for value in args if isinstance(value, fx.Node))

    def parameter(self, value: Any) -> str | None:
        """The name of the parameter behind a node that is one, perhaps in a shape with the same leading dimensions."""
        while isinstance(value, fx.Node) and value.name not in self.names:
            if value.op != "call_function" or len(value.all_input_nodes) != 1:
                return None
            source = value.all_input_nodes[0]
            if _name(value) not in _RESHAPES or _shape(source)[:2] != _shape(value)[:2]:
                return None
            value = source
        return self.names[value.name] if isinstance(value, fx.Node) else None

    def group(self, key: Any) -> int:
        if key not in self.of:
            self.of[key] = len(self.parent)
            self.parent.append(len(self.parent))
        return self.root(self.of[key])

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def tie(self, *keys: Any) -> None:
        first, *others = map(self.group, keys)
        for other in others:
            self.parent[self.root(other)] = self.root(first)

    def fix(self, *nodes: fx.Node) -> None:
        for node in nodes:
            name = self.parameter(node)
            keys = [node] if name is None else [(name, 0), (name, 1)]
            self.fixed |= {self.group(key) for key in keys}


def _name(node: fx.Node) -> str:
    """The operator's, without its overload; empty for what is none, such as taking one of several outputs."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet else ""


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
