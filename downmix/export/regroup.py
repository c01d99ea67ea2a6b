"""Permutes channels once, in the weights, so that PiX's groups become element-wise over slices."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..layers import AdaptiveSoftPool2d, MixedPool2d, PiX, PowerAvgPool2d, S3Pool2d, SoftPool2d, StochasticPool2d
from ..layers._calls import has_methods_of, is_hooked, is_intercepted
from ..layers._modes import copy_network
from ..layers._places import names_of, noted
from ._channels import Channels, Site, find_channels
from ._chunked import ChunkedPiX
from ._program import check_arguments, trace_program

Network = TypeVar("Network", bound=nn.Module)
Plan = tuple[Tensor, Tensor, Tensor | None]  # what ChunkedPiX takes
_POOLS = (AdaptiveSoftPool2d, MixedPool2d, PowerAvgPool2d, S3Pool2d, SoftPool2d, StochasticPool2d)
_ADDS = "adds up what it reads since fuse; regroup the network before that"
_METHODS = ("forward", "probabilities", "gated")  # that decide what a PiX layer computes


@dataclass(frozen=True)
class Regrouped:
    """What became of one PiX layer.

    Attributes:
        name: where it stands in the network.
        why_not: the rest of a sentence that starts with the name, where the layer stays as it was; else empty.
    """

    name: str
    why_not: str = ""


def regroup(network: Network, images: Tensor) -> tuple[Network, list[Regrouped]]:
    """A copy that computes the same with channels in another order, for inference.

    PiX reduces groups of neighbouring channels. Here channels are permuted so that the members of group i become the
    i-th channels of r equal chunks. What the permutation passes through takes it into its parameters: convolutions,
    BatchNorms, linear maps, and PiX itself. Inputs and outputs of the network keep their order. Where a network
    demands an order, as a concatenation does, its PiX layers stay as they are.

    Blocks that read one map with different reductions share one permutation, as long as the smaller divides the larger.

    Args:
        network: in evaluation mode, such that torch.export can trace it.
        images (Tensor[B, C, H, W]): for the trace.

    Returns:
        The copy, and what became of each PiX layer.

    Raises:
        TypeError: if ``network`` is no module or ``images`` no tensor.
        ValueError: if the network is in training mode, or torch.export can't trace it.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 1), PiX(8, 4), nn.Conv2d(2, 5, 1)).eval()
        >>> x = torch.randn(2, 3, 6, 6)
        >>> regrouped, report = regroup(block, x)
        >>> torch.testing.assert_close(regrouped(x), block(x))
        >>> report
        [Regrouped(name='1', why_not='')]
    """
    check_arguments("regroup", network, images)
    copied = copy_network(network)
    squeezes: dict[PiX, list[str]] = {}  # with all names
    pools: dict[nn.Module, list[str]] = {}
    for module, names in names_of(copied).items():
        if isinstance(module, PiX):
            squeezes[module] = names
        elif type(module) in _POOLS and not is_intercepted(module):
            pools[module] = names
    if not squeezes:
        return copied, []
    adding = _adding(copied)
    stays = {pix: _stays(pix) or (_ADDS if pix in adding else "") for pix in squeezes}
    for number, (pix, names) in enumerate(squeezes.items()):
        if not stays[pix]:  # one that does is in the trace as it is, where what it computes is seen
            _put(copied, names, noted(pix, Site(number, pix.out_channels)))
    for pool, names in pools.items():
        _put(copied, names, noted(pool, _of_torch(pool)))
    channels = find_channels(trace_program(copied, images))
    for pool, names in pools.items():
        _put(copied, names, pool)
    orders, plans = _choose_orders(channels, list(squeezes))
    report = []
    for number, (pix, names) in enumerate(squeezes.items()):
        plan = plans.get(number, stays[pix] or "does not run")
        new = pix if isinstance(plan, str) else noted(pix, ChunkedPiX(pix, *plan))
        _put(copied, names, new.eval())
        report.append(Regrouped(names[0], plan if isinstance(plan, str) else ""))
    for group, order in orders.items():
        for name, dim in channels.carriers.get(group, ()):
            carrier = _tensor(copied, name)
            carrier.data = carrier.data.index_select(dim, order.to(carrier.device))
    return copied, report


def _stays(pix: PiX) -> str:
    """Why a layer stays as it is, whatever it reads; empty where nothing speaks against another."""
    if is_hooked(pix):
        return "carries a forward hook"
    # Not by its class, as parametrizations make one of their own.
    if not has_methods_of(pix, PiX, *_METHODS):
        return "computes something of its own, by a subclass or a method put in its place"
    return ""


def _adding(network: nn.Module) -> set[nn.Module]:
    """The layers that :func:`downmix.fuse` gave a second map."""
    return {
        graph.get_submodule(str(node.target))
        for graph in network.modules()
        if isinstance(graph, fx.GraphModule)
        for node in graph.graph.nodes
        if node.op == "call_module" and len(node.args) > 1
    }


def _of_torch(pool: nn.Module) -> nn.Module:
    """A pool of torch with the same windows, each of one channel, which the trace then shows as one operator."""
    if isinstance(pool, AdaptiveSoftPool2d):
        return nn.AdaptiveAvgPool2d(pool.output_size)
    window: Any = pool
    kernel_size, stride, padding, dilation, ceil_mode = window.window
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)


def _put(network: nn.Module, names: list[str], module: nn.Module) -> None:
    for name in names:
        network.set_submodule(name, module, strict=True)


def _choose_orders(channels: Channels, squeezes: list[PiX]) -> tuple[dict[int, Tensor], dict[int, Plan | str]]:
    """For each group of channel dimensions the original channel that stands at each place; those not named keep theirs.

    And for each squeeze what :class:`ChunkedPiX` needs to know, or why it stays.
    """
    orders: dict[int, Tensor] = {}
    plans: dict[int, Plan | str] = {}
    readers: dict[int, list[int]] = {}
    for number, (read, _) in channels.sites.items():
        readers.setdefault(read, []).append(number)
    settled = set(channels.fixed)  # no longer free to choose
    for read, numbers in readers.items():
        if reason := _why_not(read in channels.fixed, [squeezes[number] for number in numbers]):
            plans |= dict.fromkeys(numbers, reason)
            settled |= {read, *(channels.sites[number][1] for number in numbers)}
    # What a squeeze writes has fewer channels than what it reads, so it is settled before.
    for read, numbers in sorted(readers.items(), key=lambda item: squeezes[item[1][0]].in_channels):
        if numbers[0] not in plans:
            wanted = {number: channels.sites[number][1] for number in numbers if squeezes[number].reduction > 1}
            free = {number: group not in settled and group not in readers for number, group in wanted.items()}
            orders[read] = _nest(squeezes, wanted, free, orders, squeezes[numbers[0]].in_channels)
            settled |= {read}
            for number in numbers:
                r, written = squeezes[number].reduction, channels.sites[number][1]
                groups = orders[read][: len(orders[read]) // r] // r
                if written not in settled and written not in readers:
                    orders[written] = groups
                    settled |= {written}
                there = orders.get(written, torch.arange(len(groups)))
                gather = None if torch.equal(there, groups) else groups.argsort()[there]
                plans[number] = (orders[read], groups, gather)
    return orders, plans


def _why_not(fixed: bool, squeezes: list[PiX]) -> str:
    """Why the channels that these squeezes read can't be permuted; empty where they can."""
    reductions = sorted({pix.reduction for pix in squeezes})
    if any(pix.in_channels % pix.reduction for pix in squeezes):
        return "has a last group that is shorter"
    if fixed and reductions != [1]:
        return "reads channels whose order the network depends on"
    if any(larger % smaller for smaller, larger in pairwise(reductions)):
        return f"shares its map with reductions that don't divide each other: {', '.join(map(str, reductions))}"
    return ""


def _nest(
    squeezes: list[PiX], wanted: dict[int, int], free: dict[int, bool], orders: dict[int, Tensor], channels: int
) -> Tensor:
    """An order in which the groups of every reduction are chunked, those of the largest as their reader wants them."""
    reductions = sorted({squeezes[number].reduction for number in wanted})
    if not reductions:
        return torch.arange(channels)
    largest = reductions[-1]
    leaders = sorted((n for n in wanted if squeezes[n].reduction == largest), key=lambda number: free[number])
    groups = orders.get(wanted[leaders[0]], torch.arange(channels // largest))
    # A channel's place in its group, in digits of which the last counts within the smallest group, turned round.
    digits = [larger // smaller for smaller, larger in pairwise([1, *reductions])][::-1]
    members = torch.arange(largest).reshape(digits).permute(*reversed(range(len(digits)))).flatten()
    return (groups * largest + members[:, None]).flatten()


def _tensor(network: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(network.get_submodule(owner), leaf)
