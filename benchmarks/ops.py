"""Times the operators against what they compete with, on real layer shapes: `python -m benchmarks.ops`.

Every case first has to agree with its float64 reference; then all its contenders take turns in one process, and the
CSV gets the minimum, the median and the 20 % and 80 % quantiles of each, and the bandwidth that the minimum comes to
for the fewest bytes that could be moved. `python -m benchmarks.readme` makes the tables.

A GPU is timed by its own clock, without what Python takes to launch kernels, and finds nothing in its cache.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from downmix._cudnn import convolutions_by_time
from downmix.tools._environment import commit, environment
from downmix.tools._results import read_rows, write_rows
from downmix.tools._timing import interleave, summarize, wall_ms

from .cases import BATCHES, DEVICE, Case, cases

RESULTS = Path(__file__).parent / "results"
ROUNDS = {"forward": 25, "forward+backward": 12}


def agrees(case: Case) -> bool:
    """Whether output and gradients are within twice the reference's own error, or a rounding, of float64."""
    constants = [leaf.detach().double().requires_grad_() for leaf in case.leaves]
    rounding = 4 * torch.finfo(case.leaves[0].dtype).eps
    truth, own, ours = (
        _with_gradients(function, leaves)
        for function, leaves in (
            (case.reference, constants),
            (case.reference, case.leaves),
            (case.ours, case.leaves),
        )
    )
    return all(
        (o.double() - t).abs().max() <= 2 * (r.double() - t).abs().max() + rounding * t.abs().max()
        for t, r, o in zip(truth, own, ours, strict=True)
    )


def _with_gradients(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    grad = torch.linspace(-1, 1, output.numel(), device=DEVICE, dtype=torch.float64).reshape(output.shape)
    return [output, *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def least_bytes(case: Case) -> dict[str, int]:
    """What each pass has to move at least: what it is given is read once, what it gives is written once."""
    with torch.no_grad():
        written = case.ours(*case.leaves).nbytes
    read = sum(leaf.nbytes for leaf in case.leaves)
    return {"forward": read + written, "forward+backward": (read + written) + (read + written + read)}


def gpu_ms(call: Callable[[], object]) -> float:
    """The milliseconds that one call keeps the GPU busy."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Clears the cache, and takes long enough for all that the call launches to stand in line when the clock starts:
    # two milliseconds, as half of one was too short for autograd's launches on a machine with slow cores.
    memory = torch.empty(1 << 31, dtype=torch.uint8, device=DEVICE)
    for _ in range(4):
        memory.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def calls_of(case: Case, compile: bool) -> dict[str, dict[str, Callable[[], object]]]:
    """By pass and contender, what is timed: in inference, and in training."""
    torch.compiler.reset()
    contenders = {"downmix": case.ours, "eager": case.reference, **case.others}
    if compile and case.compiled:
        contenders["torch.compile"] = torch.compile(case.reference, fullgraph=True)
    grads: dict[str, Tensor] = {}

    def forward(function: Callable[..., Tensor]) -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                function(*case.leaves)

        return call

    def both(name: str, function: Callable[..., Tensor]) -> Callable[[], object]:
        leaves = [leaf.detach().requires_grad_() for leaf in case.leaves]
        inputs = [*leaves, *case.parameters.get(name, [])]

        def call() -> None:
            output = function(*leaves)
            if name not in grads:
                grads[name] = torch.randn_like(output)
            torch.autograd.grad(output, inputs, grads[name], allow_unused=True)

        return call

    return {
        "forward": {name: forward(function) for name, function in contenders.items()},
        "forward+backward": {name: both(name, function) for name, function in contenders.items()},
    }


def time_case(case: Case, compile: bool) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(pass, contender, milliseconds) of every contender."""
    for name, calls in calls_of(case, compile).items():
        calls["copy of x"] = lambda: case.leaves[0].clone()
        time_call = gpu_ms if DEVICE.type == "cuda" else wall_ms
        for contender, times in interleave(calls, ROUNDS[name], time_call=time_call).items():
            yield name, contender, summarize(times)


@lru_cache(maxsize=1)
def nth(cases: Callable[..., Iterator[Any]], number: int, *which: Any) -> Any:
    """One case alone, as the maps of all are many gigabytes."""
    return next(islice(cases(*which), number, None))


def _compile(number: int, compile: bool, only: str, batches: Sequence[int]) -> None:
    for calls in calls_of(nth(cases, number, only, batches), compile).values():
        for call in calls.values():
            call()


def _start_no_more() -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def compile_in(processes: int, function: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
    """Calls ``function`` with each task's arguments in processes of their own, which leave on disk what they compile,
    so that those who time find it there."""
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_no_more) as pool:
        for done in track([pool.submit(function, *task) for task in tasks], description="compiling"):
            done.result()


def device_word() -> str:
    """How files of results call the device: cpu, or a GPU's number, as h200 of NVIDIA H200."""
    numbers = re.findall(r"\w*\d\w*", torch.cuda.get_device_name(DEVICE)) if DEVICE.type == "cuda" else ["cpu"]
    return (numbers or ["cuda"])[0].lower()


@convolutions_by_time()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes of PiX's inputs")
    parser.add_argument("--quick", action="store_true", help="without torch.compile, which takes most of the time")
    parser.add_argument("--output", type=Path, help="the CSV to write, by default benchmarks/results/ops_DEVICE.csv")
    parser.add_argument("--only", default="", help="part of an operator's name; the CSV's other rows stay as they are")
    parser.add_argument("--processes", type=int, default=1, help="that compile, before anything is timed, if many")
    options = parser.parse_args()
    which = options.only, tuple(options.batches)
    found = list(cases(*which))
    if options.processes > 1:
        compile_in(options.processes, _compile, [(n, not options.quick, *which) for n in range(len(found))])
    described = environment(DEVICE)
    about = {"device": described["device"], "threads": described["threads"], "commit": commit()}
    about |= {f"{name}_version": version for name, version in described["versions"].items()}
    path = options.output or RESULTS / f"ops_{device_word()}.csv"
    rows: list[dict[str, Any]] = []
    if options.only and path.exists():
        rows = [row for row in read_rows(path) if options.only not in row["op"]]
    for case in track(found, description="timing"):
        # Above that, the reference in float64 would not fit the memory.
        if case.checked and case.leaves[0].numel() <= 1 << 26 and not agrees(case):
            raise SystemExit(f"{case.op} {case.shape} {case.layout} differs from its reference: not timed")
        bytes_moved = least_bytes(case)
        for pass_, contender, ms in time_case(case, compile=not options.quick):
            row = {"op": case.op, "shape": case.shape, "layout": case.layout, "pass": pass_, "contender": contender}
            row["dtype"] = str(case.leaves[0].dtype).removeprefix("torch.")
            moved = 2 * case.leaves[0].nbytes if contender == "copy of x" else bytes_moved[pass_]
            row |= {f"{name}_ms": f"{value:.4f}" for name, value in ms.items()}
            rows.append(row | {"gb_per_s": f"{moved / ms['min'] / 1e6:.1f}"} | about)
        write_rows(path, rows)
    print(f"{len(found)} cases, {path}")


if __name__ == "__main__":
    main()
