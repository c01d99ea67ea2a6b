"""`downmix bench`: how long whole networks take, in turns, in every way that they are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .._cudnn import convolutions_by_time
from ..cost import Cost
from ..models._networks import create_network, own_input_size
from ..ops._define import check_choice
from ..train import Recipe
from ..train.writable import check_file
from . import _bench_report as report
from ._bench_exported import bench_exported
from ._bench_networks import DTYPES, ENGINES, FAILURES, LAYOUTS, MODES, Configuration, Subject
from ._console import progress_bars, wide_console
from ._environment import environment
from ._timing import interleave, summarize

HELP = "Time whole networks against each other: inference and training, eager and compiled, BatchNorm folded or not."
FOLD_BN = {"no": (False,), "yes": (True,), "both": (False, True)}
# What may be said of exported files, whose runtimes decide the rest: the defaults, and what is so anyway.
_OF_EXPORTED: dict[str, tuple[Any, ...]] = {
    "against": (None,),
    "modes": (list(MODES), ["inference"]),
    "engines": (["eager"],),
    "layouts": (["channels_last"],),
    "fold_bn": ("both", "yes"),
    "dtype": ("float32",),
    "device": ("cpu",),
}


@dataclass
class Row:
    """A network in a configuration: its milliseconds (min, median, p20, p80), or why there are none."""

    configuration: Configuration
    network: str
    ms: dict[str, float]
    error: str = ""


@dataclass
class Bench:
    """All that was measured.

    Attributes:
        baseline: the network that ratios are relative to.
        about: device, threads, versions, dtype, size of the images, rounds.
        costs: of one image, by network.
        folded_norms: how many of its BatchNorms were folded, and how many it has, by network.
        rows: the measurements.
    """

    baseline: str
    about: dict[str, Any]
    costs: dict[str, Cost]
    folded_norms: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def speedup(self, row: Row, which: str) -> float | None:
        """The baseline's milliseconds by the network's, so above 1 where it is faster; None where one is missing."""
        for other in self.rows:
            if other.network == self.baseline and other.configuration == row.configuration and other.ms and row.ms:
                return other.ms[which] / row.ms[which]
        return None

    def macs_ratio(self, name: str) -> float:
        """The baseline's operations by the network's: the speed-up if time went with operations."""
        return self.costs[self.baseline].macs / self.costs[name].macs


def add_arguments(parser: Any) -> None:
    parser.add_argument("models", nargs="*", type=str, help="networks, by their names in timm or NAME:key=value,…")
    parser.add_argument(
        "--exported", nargs="+", type=Path, help="files of `downmix export` in their place, each run in its runtime"
    )
    parser.add_argument("--against", type=str, default=None, help="the baseline of all ratios; by default the first")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8], help="images at once")
    parser.add_argument("--image_size", type=int, default=None, help="height and width; by default the baseline's own")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="what is timed")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager"], help="how networks are run")
    parser.add_argument(
        "--layouts", nargs="+", choices=tuple(LAYOUTS), default=["channels_last"], help="how images lie in memory"
    )
    parser.add_argument(
        "--fold_bn", choices=tuple(FOLD_BN), default="both", help="fold BatchNorms into convolutions, in inference"
    )
    parser.add_argument("--rounds", type=int, default=15, help="how often each network is timed")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; by default torch's own choice")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of parameters and images")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--output", type=Path, default=None, help="CSV file for all figures; a PNG goes beside it")


def run(args: Any) -> None:
    if bool(args.exported) == bool(args.models):
        raise ValueError("name the networks to time, or files of `downmix export` after --exported, not both")
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.exported:
        if meant := [name for name, allowed in _OF_EXPORTED.items() if args[name] not in allowed]:
            raise ValueError(
                f"exported files run as they were written, on the CPU; leave out --{', --'.join(meant)}, which "
                f"{'is' if len(meant) == 1 else 'are'} for networks"
            )
        how = {"rounds": args.rounds, "threads": args.threads, "output": args.output}
        bench_exported(args.exported, args.batch_sizes, image_size=args.image_size, **how)
        return
    first = [args.against] if args.against and args.against not in args.models else []
    bench(
        first + args.models,
        configurations(args.modes, args.engines, args.layouts, args.fold_bn, args.batch_sizes),
        baseline=args.against,
        image_size=args.image_size,
        rounds=args.rounds,
        dtype=args.dtype,
        device=args.device,
        output=args.output,
    )


def configurations(
    modes: Sequence[str], engines: Sequence[str], layouts: Sequence[str], fold_bn: str, batch_sizes: Sequence[int]
) -> list[Configuration]:
    """Every combination, each once; training, which folds nothing, is there whatever ``fold_bn`` says."""
    check_choice("fold_bn", fold_bn, tuple(FOLD_BN))
    found = (
        Configuration(mode, engine, layout, fold and mode != "training", batch_size)
        for mode in modes
        for engine in engines
        for layout in layouts
        for fold in FOLD_BN[fold_bn]
        for batch_size in batch_sizes
    )
    return list(dict.fromkeys(found))


def bench(
    models: Sequence[str],
    configurations: Sequence[Configuration],
    *,
    baseline: str | None = None,
    image_size: int | None = None,
    rounds: int = 15,
    dtype: str = "float32",
    device: str = "cpu",
    output: Path | None = None,
    console: Console | None = None,
) -> Bench:
    """Times networks; in each configuration they take turns, so that a noisy machine is noisy to all of them.

    A network that fails in a configuration gets a row that says why; the others go on.

    Args:
        models: names that timm knows, or ``NAME:key=value,key=value`` with arguments of the network.
        configurations: see :func:`configurations`.
        baseline: one of ``models``, what ratios are relative to; by default the first.
        image_size: height and width of the images, which are noise; by default those the baseline was made for.
        rounds: how often each network is timed in each configuration, 2 or more.
        dtype: of parameters and images; there is no autocast.
        device: cpu, cuda, cuda:N or auto.
        output: CSV file; a picture is drawn beside it. Both and the table come after an interrupt too.
        console: where progress and table go.

    Raises:
        ValueError: if a name or a number can't be used, ``output`` can't be written, or nothing could be measured.
    """
    baseline = models[0] if baseline is None else baseline
    check_choice("baseline", baseline, tuple(models))
    check_choice("dtype", dtype, tuple(DTYPES))
    if len(set(models)) != len(models):
        raise ValueError(f"each network can stand once in a comparison, got {', '.join(models)}")
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, got {rounds}")
    console, on = console or wide_console(), Recipe(device=device).torch_device()
    if output is not None:
        if output.suffix == ".png":
            raise ValueError(
                f"output is a CSV file, and a PNG goes beside it; give {output} another ending, such as .csv"
            )
        check_file(output)
        check_file(output.with_suffix(".png"))
    with console.status("building the networks"):
        size = None if image_size is None else (3, image_size, image_size)
        networks = {name: create_network(name, input_size=size) for name in models}
        size = size or own_input_size(baseline, networks[baseline], "--image_size")
        subjects = {name: Subject(name, network, size, on) for name, network in networks.items()}
    about = {**environment(on), "dtype": dtype, "input_size": size, "rounds": rounds}
    result = Bench(baseline, about, {name: subject.cost for name, subject in subjects.items()})
    try:
        _measure_all(result, subjects, configurations, console)
    finally:
        if any(row.ms for row in result.rows):  # after an interrupt too
            report.show(result, console)
            if output is not None:
                report.write(result, output)
                console.print(f"figures: {output}\npicture: {output.with_suffix('.png')}", soft_wrap=True)
    if not any(row.ms for row in result.rows):
        raise ValueError(f"nothing could be measured: {next((row.error for row in result.rows), 'no configurations')}")
    return result


@convolutions_by_time()
def _measure_all(
    result: Bench, subjects: dict[str, Subject], configurations: Sequence[Configuration], console: Console
) -> None:
    with progress_bars(console, width=58) as progress:
        task = progress.add_task("timing", total=len(configurations))
        for configuration in configurations:
            progress.update(task, description=str(configuration))
            result.rows += _measure(subjects, configuration, DTYPES[result.about["dtype"]], result.about["rounds"])
            result.folded_norms = {name: n for name, subject in subjects.items() if (n := subject.folded_norms)}
            progress.advance(task)


def _measure(subjects: dict[str, Subject], configuration: Configuration, dtype: torch.dtype, rounds: int) -> list[Row]:
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, str] = {}
    torch.compiler.reset()
    # Networks of one class share their forward's code; past its limit of variants torch.compile leaves off in silence.
    with torch._dynamo.config.patch(recompile_limit=8 * len(subjects)):
        for name, subject in subjects.items():
            try:
                call = subject.call(configuration, dtype)
                call()  # torch.compile compiles here
                calls[name] = call
            except FAILURES as error:
                errors[name] = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        times = interleave(calls, rounds)
    ms = {name: summarize(spent) for name, spent in times.items()}
    return [Row(configuration, name, ms.get(name, {}), errors.get(name, "")) for name in subjects]
