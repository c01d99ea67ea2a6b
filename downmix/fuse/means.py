"""Finds PiX layers that read a rectified residual sum, and takes their means in the pass that adds and rectifies."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from ..layers import PiX
from ..layers._shared_passes import is_hooked
from ..ops.add_relu_mean import add_relu_mean_
from .report import Step

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ADDS_IN_PLACE = {operator.iadd, "add_"}
_RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
# What an output may consist of besides tensors without holding one.
_PLAIN = (int, float, complex, str, type(None), torch.Size, torch.dtype, torch.device)


def join_means(network: nn.Module, images: Tensor) -> tuple[nn.Module, list[Step]]:
    """Lets :func:`add_relu_mean_` take the mean of each PiX layer that reads the ReLU of a sum.

    Args:
        network: for inference; its layers become those of the result.
        images (Tensor[B, C, H, W]): what it is run on.

    Returns:
        A :class:`torch.fx.GraphModule` with the names of all layers, or ``network`` itself where nothing was joined,
        and what became of each PiX layer.
    """
    squeezes = {name: _hook(network, name) for name, module in network.named_modules() if isinstance(module, PiX)}
    if all(squeezes.values()):
        return network, [Step(name, hook) for name, hook in squeezes.items()]
    try:
        graph = _Tracer(network).trace(network)
        traced = fx.GraphModule(network, graph, type(network).__name__)
        storages = _Storages(traced)
        storages.run(images)
        storages.env.clear()  # lets go of what nobody reads
    except Exception as error:  # a forward may do anything that a trace can't follow
        reason = f"stands in a network that torch.fx can't trace: {' '.join(str(error).split())}"
        return network, [Step(name, reason) for name in squeezes]
    joined: set[str] = set()
    for node in list(graph.nodes):
        joined |= _join(node, network, storages)
    if joined:
        graph.lint()
        traced.recompile()
    why_not = {name: hook or "does not read the ReLU of a sum" for name, hook in squeezes.items()}
    steps = [Step(name, "" if name in joined else reason) for name, reason in why_not.items()]
    return traced if joined else network, steps


def _hook(network: nn.Module, name: str) -> str:
    """Why a hook keeps a layer as it is, perhaps one of a module around it; empty where there is none."""
    if is_hooked(network.get_submodule(name)):
        return "carries a forward hook"
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(len(parts)))
    outer = next((outer for outer in around if is_hooked(network.get_submodule(outer))), None)
    return "" if outer is None else f"stands in {outer or 'a network'}, which carries a forward hook"


class _Tracer(fx.Tracer):
    """Goes into modules of those classes that hold PiX layers somewhere; every other module is a single node.

    So is one with hooks, which a trace would call for good or not at all.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.holders = {
            type(module)
            for module in network.modules()
            if any(isinstance(inner, PiX) for inner in module.modules()) and not isinstance(module, PiX)
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) not in self.holders or is_hooked(m)


class _Storages(fx.Interpreter):
    """Notes which memory the output of each node holds, and the shape and dtype of those that fill a run of it."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        # Weak references, as one is equal to no other storage, even to one at the same address later.
        self.held: dict[fx.Node, set[StorageWeakRef]] = {}
        self.opaque: set[fx.Node] = set()  # outputs that hold who knows what
        self.kinds: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        leaves = tree_leaves(output)
        self.held[n] = {StorageWeakRef(leaf.untyped_storage()) for leaf in leaves if isinstance(leaf, Tensor)}
        if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
            self.opaque.add(n)
        layouts = (torch.contiguous_format, torch.channels_last)
        if isinstance(output, Tensor) and any(output.is_contiguous(memory_format=layout) for layout in layouts):
            self.kinds[n] = output.shape, output.dtype
        return output

    def may_overwrite(self, node: fx.Node, added: fx.Node) -> bool:
        """Whether nobody reads the memory of a summand after the addition."""
        memory = self.held[node]
        # Memory that outlives the run belongs to a parameter, the images, or to somebody who keeps maps.
        if not all(storage.expired() for storage in memory):
            return False
        if any(self.held[other] & memory for other in added.all_input_nodes if other is not node):
            return False  # slices of one map may overlap
        holders = (n for n in self.held if n < added and (n in self.opaque or self.held[n] & memory))
        return all(user <= added for holder in holders for user in holder.users)

    def move(self, relu: fx.Node, x: fx.Node) -> None:
        """Notes that what was in the memory of ``relu`` is in that of ``x`` now."""
        both = self.held[relu] | self.held[x]
        for held in self.held.values():
            if held & both:
                held |= both
        for node in (relu, *relu.all_input_nodes):
            del self.held[node]


def _join(relu: fx.Node, network: nn.Module, storages: _Storages) -> set[str]:
    """Rewrites a ReLU, the sum before it and the PiX layers behind it; the names of those, none if they don't fit."""
    readers = [user for user in relu.users if _is(user, network, PiX) and user.args == (relu,) and not user.kwargs]
    if not readers or not (_is(relu, network, nn.ReLU) or relu.target in _RELUS) or relu not in storages.kinds:
        return set()
    added = relu.all_input_nodes[0]
    if added.target not in _ADDS or added.kwargs or len(added.users) > 1 or len(added.all_input_nodes) != 2:
        return set()
    summands = added.all_input_nodes
    if any(storages.kinds.get(summand) != storages.kinds[relu] for summand in summands):
        return set()
    may = [storages.may_overwrite(summand, added) for summand in summands]
    if not may[0] and (added.target in _ADDS_IN_PLACE or not may[1]):
        return set()
    x, shortcut = summands if may[0] else reversed(summands)
    with relu.graph.inserting_before(relu):
        mean = relu.graph.call_function(add_relu_mean_, (x, shortcut))
    storages.move(relu, x)
    relu.replace_all_uses_with(x)
    for reader in readers:
        reader.args = (x, mean)
    relu.graph.erase_node(relu)
    relu.graph.erase_node(added)
    return {str(reader.target) for reader in readers}


def _is(node: fx.Node, network: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a node calls a module of that kind, and nothing else, as a hook would."""
    if node.op != "call_module":
        return False
    module = network.get_submodule(str(node.target))
    return isinstance(module, kind) and not is_hooked(module)
