"""Finds PiX layers that read a rectified residual sum, and has them add and rectify it themselves."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..layers import PiX
from ..layers._calls import has_methods_of, is_hooked, is_intercepted
from .fold import check_same, hiding, run
from .report import Step

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ADDS_IN_PLACE = {operator.iadd, "add_"}
_RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
# Images of another dtype, layout or size may go through these as they are: what `.float()` or `.contiguous()` gives
# then is the caller's own memory, as it is where a layer pads only images that need it.
_MAY_PASS_ON = {"_to_copy", "clone", "contiguous", "to", "constant_pad_nd"}


def join_means(network: nn.Module, images: Tensor) -> tuple[nn.Module, list[Step]]:
    """Gives each PiX layer that reads the ReLU of a sum what is added up, so that they share passes over the map.

    Args:
        network: for inference; its layers become those of the result.
        images (Tensor[B, C, H, W]): what it is run on.

    Returns:
        A :class:`torch.fx.GraphModule` with the names of all layers, or ``network`` itself where nothing was joined,
        and what became of each PiX layer.
    """
    squeezes = {name: _why_not(network, name) for name, module in network.named_modules() if isinstance(module, PiX)}
    if all(squeezes.values()):
        return network, [Step(name, reason) for name, reason in squeezes.items()]
    before = run(network, images)
    if kind := hiding(before):
        reason = f"stands in a network that returns a {kind}, in which outputs can't be compared"
        return network, [Step(name, reason) for name in squeezes]
    try:
        graph = _Tracer(network).trace(network)
        traced = fx.GraphModule(network, graph, type(network).__name__)
        storages = _Storages(traced)
        # A forward that asks whether it is given a tensor, say, takes another way while it is traced.
        check_same(before, run(storages.run, images), "the trace")
        storages.env.clear()  # lets go of what nobody reads
    except Exception as error:  # a forward may do anything that a trace can't follow
        reason = f"stands in a network that torch.fx can't trace: {' '.join(str(error).split())}"
        return network, [Step(name, reason) for name in squeezes]
    joined = {}
    for node in list(graph.nodes):
        joined |= _join(node, network, storages)
    if joined:
        graph.lint()
        traced.recompile()
    why_not = {name: reason or "does not read the ReLU of a sum" for name, reason in squeezes.items()}
    return traced if joined else network, [Step(name, reason) for name, reason in (why_not | joined).items()]


def _why_not(network: nn.Module, name: str) -> str:
    """Why a PiX layer stays as it is, whatever it reads: a hook, perhaps of a module around it, say; else empty."""
    layer: Any = network.get_submodule(name)
    if is_hooked(layer):
        return "carries a forward hook"
    if is_intercepted(layer):
        return "has a forward put in its place, which takes no sum"
    if not layer.is_plain:
        return "has a norm, or is of a class of its own"
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(len(parts)))
    outer = next((outer for outer in around if is_hooked(network.get_submodule(outer))), None)
    return "" if outer is None else f"stands in {outer or 'a network'}, which carries a forward hook"


class _Tracer(fx.Tracer):
    """Goes into modules of those classes that hold PiX layers somewhere; every other module is a single node.

    So is one with hooks, which a trace would call for good or not at all.
    """

    def __init__(self, network: nn.Module | None = None):  # of none where torch loads a graph that was pickled
        super().__init__()
        self.holders = {
            type(module)
            for module in (() if network is None else network.modules())
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
        self.copies = _Copies()
        self.kinds: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        with self.copies:
            output = super().run_node(n)
        leaves = tree_leaves(output)
        self.held[n] = {StorageWeakRef(leaf.untyped_storage()) for leaf in leaves if isinstance(leaf, Tensor)}
        if hiding(leaves):
            self.opaque.add(n)
        layouts = (torch.contiguous_format, torch.channels_last)
        if isinstance(output, Tensor) and any(output.is_contiguous(memory_format=layout) for layout in layouts):
            self.kinds[n] = output.shape, output.dtype
        return output

    def may_overwrite(self, node: fx.Node, added: fx.Node) -> bool:
        """Whether nobody reads the memory of a summand after the addition."""
        memory = self.held[node]
        # Memory that outlives the run belongs to a parameter, the images, or to somebody who keeps maps.
        if not all(storage.expired() for storage in memory) or memory & self.copies.made:
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


class _Copies(TorchDispatchMode):
    """Notes the memory of copies that other images might not need."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _MAY_PASS_ON:
            self.made.add(StorageWeakRef(output.untyped_storage()))
        return output


def _join(relu: fx.Node, network: nn.Module, storages: _Storages) -> dict[str, str]:
    """Leaves a ReLU and the sum before it to the first PiX layer behind it; the names of all such layers, and why they
    stay as they are; none if the sum doesn't fit."""
    squeezes = [user for user in relu.users if user.args == (relu,) and not user.kwargs and _is(user, network, PiX)]
    readers = [user for user in squeezes if not _why_not(network, str(user.target))]
    if not readers or not (_is(relu, network, nn.ReLU) or _is_any(relu, _RELUS)) or relu not in storages.kinds:
        return {}
    added = relu.all_input_nodes[0]
    if not _is_any(added, _ADDS) or added.kwargs or len(added.users) > 1 or len(added.all_input_nodes) != 2:
        return {}
    summands = added.all_input_nodes
    if any(storages.kinds.get(summand) != storages.kinds[relu] for summand in summands):
        return {}
    may = [storages.may_overwrite(summand, added) for summand in summands]
    if not may[0] and (added.target in _ADDS_IN_PLACE or not may[1]):
        return {}
    x, shortcut = summands if may[0] else reversed(summands)
    first, *others = readers
    storages.move(relu, x)
    relu.prepend(first)
    first.args = (x, shortcut)
    relu.replace_all_uses_with(x)
    relu.graph.erase_node(relu)
    relu.graph.erase_node(added)
    taken = f"reads a sum that {first.target} adds up"
    return {str(first.target): "", **{str(other.target): taken for other in others}}


def _is_any(node: fx.Node, functions: Collection[object]) -> bool:
    """Whether a node calls one of these functions or methods, and not a module that has the name of a method."""
    return node.op in ("call_function", "call_method") and node.target in functions


def _is(node: fx.Node, network: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a node calls a module that runs the forward of that kind, and nothing else, as a hook would."""
    if node.op != "call_module":
        return False
    module = network.get_submodule(str(node.target))
    return has_methods_of(module, kind, "forward") and not is_hooked(module)
