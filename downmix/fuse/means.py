"""Finds PiX layers that read a rectified residual sum, and takes their means in the pass that adds and rectifies."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..layers import PiX
from ..ops.add_relu_mean import add_relu_mean_
from .report import Step

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ADDS_IN_PLACE = {operator.iadd, "add_"}
_RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}


def join_means(network: nn.Module, images: Tensor) -> tuple[nn.Module, list[Step]]:
    """Lets :func:`add_relu_mean_` take the mean of each PiX layer that reads the ReLU of a sum.

    Args:
        network: for inference; its layers become those of the result.
        images (Tensor[B, C, H, W]): what it is run on.

    Returns:
        A :class:`torch.fx.GraphModule` with the names of all layers, or ``network`` itself where nothing was joined,
        and what became of each PiX layer.
    """
    squeezes = {name: module for name, module in network.named_modules() if isinstance(module, PiX)}
    if not squeezes:
        return network, []
    try:
        graph = _Tracer(network).trace(network)
        traced = fx.GraphModule(network, graph, type(network).__name__)
        storages = _Storages(traced)
        storages.run(images)
    except Exception as error:  # a forward may do anything that a trace can't follow
        reason = f"stands in a network that torch.fx can't trace: {' '.join(str(error).split())}"
        return network, [Step(name, reason) for name in squeezes]
    joined: set[str] = set()
    for node in list(graph.nodes):
        joined |= _join(node, network, storages)
    if joined:
        graph.lint()
        traced.recompile()
    steps = [Step(name, "" if name in joined else "does not read the ReLU of a sum") for name in squeezes]
    return traced if joined else network, steps


class _Tracer(fx.Tracer):
    """Goes into modules of those classes that hold PiX layers somewhere; every other module is a single node."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.holders = {
            type(module)
            for module in network.modules()
            if any(isinstance(inner, PiX) for inner in module.modules()) and not isinstance(module, PiX)
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) not in self.holders


class _Storages(fx.Interpreter):
    """Notes where in memory the output of each node lies, and its shape and dtype."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.at: dict[fx.Node, int] = {}
        self.kinds: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if isinstance(output, Tensor):
            self.at[n], self.kinds[n] = output.untyped_storage().data_ptr(), (output.shape, output.dtype)
        return output

    def may_overwrite(self, node: fx.Node) -> bool:
        """Whether nobody else reads the memory of a node's output: not even an input that it was made of in place."""
        while len(node.users) == 1 and node.op.startswith("call"):
            # Inputs are alive while the output is made, so that equal addresses are no accident.
            same = [source for source in node.all_input_nodes if self.at.get(source) == self.at[node]]
            if not same:
                return True
            node = same[0]
        return False


def _join(relu: fx.Node, network: nn.Module, storages: _Storages) -> set[str]:
    """Rewrites a ReLU, the sum before it and the PiX layers behind it; the names of those, none if they don't fit."""
    readers = [user for user in relu.users if _is(user, network, PiX) and user.args == (relu,) and not user.kwargs]
    if not readers or not (_is(relu, network, nn.ReLU) or relu.target in _RELUS) or relu not in storages.at:
        return set()
    added = relu.all_input_nodes[0]
    if added.target not in _ADDS or added.kwargs or len(added.users) > 1 or len(added.all_input_nodes) != 2:
        return set()
    summands = added.all_input_nodes
    if any(storages.kinds.get(summand) != storages.kinds[relu] for summand in summands):
        return set()
    may = [storages.may_overwrite(summand) for summand in summands]
    if not may[0] and (added.target in _ADDS_IN_PLACE or not may[1]):
        return set()
    x, shortcut = summands if may[0] else reversed(summands)
    with relu.graph.inserting_before(relu):
        mean = relu.graph.call_function(add_relu_mean_, (x, shortcut))
    relu.replace_all_uses_with(x)
    for reader in readers:
        reader.args = (x, mean)
    relu.graph.erase_node(relu)
    relu.graph.erase_node(added)
    return {str(reader.target) for reader in readers}


def _is(node: fx.Node, network: nn.Module, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), kind)
