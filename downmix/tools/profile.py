"""`downmix profile`: what a network costs, layer by layer, and the time that takes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from .._cudnn import convolutions_by_time
from ..cost import CONVENTIONS, Device, Profile, measure_device
from ..cost import profile as count
from ..cost._run import images
from ..models._networks import create_network, own_input_size
from ..train import Recipe
from ..train.writable import check_file
from . import _profile_report as report
from ._console import wide_console
from ._timing import interleave, summarize, synchronize

HELP = "Count what a network costs, layer by layer: operations, bytes, memory, and the time these allow and take."


@dataclass
class Measured:
    """What was counted and timed of one network.

    Attributes:
        name: as timm knows it.
        profile: all that is counted.
        layer_ms: by a module's path, the median time in itself, its children apart.
        latency_ms: of the whole network: min, median, p20, p80.
    """

    name: str
    profile: Profile
    layer_ms: dict[str, float]
    latency_ms: dict[str, float]


def add_arguments(parser: Any) -> None:
    parser.add_argument("model", type=str, help="the network, by its name in timm or NAME:key=value,…")
    parser.add_argument("--against", type=str, default=None, help="a network to set beside it")
    parser.add_argument("--input", nargs=3, type=int, default=None, help="channels, height, width of an image")
    parser.add_argument("--batch_size", type=int, default=1, help="images at once")
    parser.add_argument("--convention", choices=CONVENTIONS, default="ptflops", help="how the layers' operations count")
    parser.add_argument("--depth", type=int, default=None, help="join layers below this depth; all are shown without")
    parser.add_argument("--gflops", type=float, default=None, help="the device's peak, 10⁹ operations/s; else measured")
    parser.add_argument("--gbytes", type=float, default=None, help="its bandwidth, 10⁹ bytes/s; else measured")
    parser.add_argument("--rounds", type=int, default=20, help="how often everything is timed")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--output", type=Path, default=None, help="CSV file for all figures")


def run(args: Any) -> None:
    if args.depth is not None and args.depth < 1:
        raise ValueError(f"depth must be at least 1, got {args.depth}")
    if args.rounds < 2:
        raise ValueError(f"rounds must be at least 2, got {args.rounds}")
    for name in ("gflops", "gbytes"):
        if args[name] is not None and not args[name] > 0:
            raise ValueError(f"{name} must be above 0, got {args[name]}")
    torch_device = Recipe(device=args.device).torch_device()
    if args.output:
        check_file(args.output)
    console = wide_console()
    names: list[str] = [args.model]
    if args.against and args.against != args.model:
        names.append(args.against)
    with console.status("building"):
        size = tuple(args.input) if args.input else None
        networks = {name: create_network(name, input_size=size).to(torch_device).eval() for name in names}
    channels, height, width = size or own_input_size(args.model, networks[args.model], "--input CHANNELS HEIGHT WIDTH")
    device = roofline(torch_device, args.gflops, args.gbytes, console)
    found = measure(networks, (channels, height, width), args.batch_size, args.rounds, console)
    report.show(found, device, args.convention, args.depth, console)
    if args.output:
        report.write_csv(found, device, torch_device, args.output)
        console.print(f"figures: {args.output}", soft_wrap=True)


def roofline(device: torch.device, gflops: float | None, gbytes: float | None, console: Console) -> Device:
    """The device's two limits; those not given are measured."""
    if gflops is not None and gbytes is not None:
        return Device(flops_per_s=gflops * 1e9, bytes_per_s=gbytes * 1e9)
    with console.status("measuring the device"):
        found = measure_device(device)
    return Device(
        flops_per_s=found.flops_per_s if gflops is None else gflops * 1e9,
        bytes_per_s=found.bytes_per_s if gbytes is None else gbytes * 1e9,
    )


@convolutions_by_time()
def measure(
    networks: dict[str, nn.Module], input_size: tuple[int, int, int], batch_size: int, rounds: int, console: Console
) -> list[Measured]:
    """Counts and times networks in evaluation mode; their latencies are measured in turns.

    Args:
        networks: by name, on one device, in evaluation mode.
        input_size: channels, height and width of an image.
        batch_size: images at once.
        rounds: how often each is timed.
        console: where progress shows.

    Raises:
        ValueError: if a network can't process such images.
    """
    x = images(next(iter(networks.values())), batch_size, input_size)
    profiles, layer_ms = {}, {}
    for name, network in networks.items():
        with console.status(f"counting {name}"):
            try:
                profiles[name] = count(network, input_size, batch_size=batch_size)
            except (RuntimeError, AssertionError) as error:
                shape = "×".join(map(str, input_size))
                raise ValueError(f"{name} can't process images of {shape}: {error}") from error
        with console.status(f"timing the layers of {name}"):
            layer_ms[name] = layer_times(network, x, rounds)
    with console.status("timing the whole networks"), torch.inference_mode():
        calls = {name: partial(network, x) for name, network in networks.items()}
        latency_ms = {name: summarize(times) for name, times in interleave(calls, rounds).items()}
    return [Measured(name, profiles[name], layer_ms[name], latency_ms[name]) for name in networks]


def layer_times(model: nn.Module, images: torch.Tensor, rounds: int) -> dict[str, float]:
    """The median milliseconds that each module spends in itself, by its path; the hooks' own time is in it."""
    times: dict[str, list[float]] = defaultdict(list)
    open_since: list[list[float]] = []  # for each module on the way down: its start, and its children's time

    def enter(*_: Any) -> None:
        synchronize()
        open_since.append([time.perf_counter(), 0.0])

    def leave(name: str, *_: Any) -> None:
        synchronize()
        start, children = open_since.pop()
        whole = time.perf_counter() - start
        if open_since:
            open_since[-1][1] += whole
        this_round[name] += 1e3 * (whole - children)

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(partial(leave, name)) for name, module in model.named_modules()]
    try:
        with torch.inference_mode():
            for i in range(-2, rounds):  # two warm up, and don't count
                this_round: dict[str, float] = defaultdict(float)
                model(images)
                for name, spent in this_round.items() if i >= 0 else ():
                    times[name].append(spent)
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics.median(spent) for name, spent in times.items()}
