"""Times other tiles than those that the Triton kernels are launched with: `python -m benchmarks.tune`, on a GPU.

What decides a tile's shape (`Share` in `_overlapping_plan.py`; in `_pix_plan.py` the loads under way, and what a thread
holds) was chosen so, on an H200. All choices of a case first have to give what the present one gives; then they take
turns, and a table says what each comes to, in milliseconds and as a share of the bandwidth of a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from downmix.kernels._layouts import layout
from downmix.kernels.triton import _overlapping_plan, _pix_plan, pix, soft_pool
from downmix.kernels.triton._common import Launch, empty_output
from downmix.ops._windows import output_sizes
from downmix.tools._timing import interleave

from .cases import BATCH, DEVICE, LAYOUTS
from .ops import compile_in, gpu_ms, nth

ROUNDS = 25
PRESENT = "as it is"
# Channels, size, and the window's size, stride and padding; channels, size and reduction.
WINDOWS = ((256, 56, 3, 2, 1), (64, 112, 3, 2, 1), (256, 56, 3, 1, 1), (256, 20, 5, 1, 2))
GROUPS = ((256, 56, 2), (256, 56, 3), (256, 56, 4), (1024, 14, 4), (2048, 7, 4))


class Case(NamedTuple):
    """What is launched on ``tensors``, the last of which is written.

    ``plan`` makes the launch, with a choice, and what it writes besides.
    """

    name: str
    tensors: list[Tensor]
    plan: Callable[[], tuple[Launch, tuple[Tensor, ...]]]
    choices: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]


def soft_pool_cases(batch: int, dtype: torch.dtype, windows: Sequence[tuple[int, ...]] = WINDOWS) -> Iterator[Case]:
    for (channels, size, kernel, stride, padding), order in itertools.product(windows, LAYOUTS):
        sizes = [kernel] * 2, [stride] * 2, [padding] * 2, [1] * 2
        x = _map((batch, channels, size, size), dtype, order)
        y = empty_output(x, (batch, channels, *output_sizes(x.shape[2:], *sizes, False)))
        grad, dx, constants = torch.randn_like(y), torch.empty_like(x), tuple(map(tuple, sizes))
        name = f"soft_pool2d {_words(x, order)} k={kernel} s={stride}"
        forward = functools.partial(soft_pool._forward_launch.__wrapped__, layout(x), layout(y), constants)
        shares = _shares(_overlapping_plan.FORWARD, order == "channels_last")
        yield Case(f"{name} forward", [x, y], lambda plan=forward: (plan(), ()), shares)
        backward = functools.partial(
            soft_pool._backward_launches.__wrapped__, *map(layout, (grad, x, dx)), constants, True
        )
        shares = _shares(_overlapping_plan.BACKWARD, order == "channels_last")
        yield Case(f"{name} backward", [grad, x, dx], lambda plan=backward: (plan()[0], ()), shares)


def pix_cases(batch: int, dtype: torch.dtype, groups: Sequence[tuple[int, ...]] = GROUPS) -> Iterator[Case]:
    for (channels, size, reduction), order in itertools.product(groups, LAYOUTS):
        rule = (reduction, 0.5, "threshold", "max+avg", False)
        x = _map((batch, channels, size, size), dtype, order)
        p = torch.rand(batch, math.ceil(channels / reduction), device=x.device, dtype=dtype)
        y = empty_output(x, (*p.shape, size, size))
        grad, dx, name = torch.randn_like(y), torch.empty_like(x), f"pick_or_mix {_words(x, order)} r={reduction}"
        forward = functools.partial(pix.forward_launch.__wrapped__, (layout(x), layout(p)), *rule)
        yield Case(f"{name} forward", [x, p, y], lambda plan=forward: (plan()[1], ()), _loads())
        backward = functools.partial(pix._backward_launch.__wrapped__, tuple(map(layout, (grad, x, p, dx))), *rule)
        yield Case(f"{name} backward", [grad, x, p, dx], functools.partial(_with_parts, backward, p), _loads())


def _map(shape: tuple[int, ...], dtype: torch.dtype, order: str) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=LAYOUTS[order])


def _words(x: Tensor, order: str) -> str:
    return f"{'x'.join(map(str, x.shape))} {order} {str(x.dtype).removeprefix('torch.')}"


def _with_parts(plan: Callable[[], tuple[int, Launch]], p: Tensor) -> tuple[Launch, tuple[Tensor, ...]]:
    """The launch of a backward pass, with room for the parts of the gradient of p."""
    count, launch = plan()
    return launch, (p.new_empty(*p.shape, count, dtype=torch.promote_types(p.dtype, torch.float32)),)


def _shares(shares: dict[bool, Any], channels_inner: bool) -> dict[str, Any]:
    choices: dict[str, Any] = {PRESENT: contextlib.nullcontext}
    for numbers in itertools.product((4, 8, 16), (1, 2), (8, 32), (2048, 8192), (128, 168)):
        share = _overlapping_plan.Share(*numbers)
        if share != shares[channels_inner]:
            words = ", ".join(f"{name} {number}" for name, number in share._asdict().items())
            choices[words] = functools.partial(mock.patch.dict, shares, {channels_inner: share})
    return choices


def _loads() -> dict[str, Any]:
    choices: dict[str, Any] = {PRESENT: contextlib.nullcontext}
    for loads, held in itertools.product((1, 2, 4, 8), (16, 32, 64)):
        choices[f"loads {loads}, of a thread {held}"] = functools.partial(_planned_with, loads, held)
    return choices


@contextlib.contextmanager
def _planned_with(loads: int, held: int) -> Iterator[None]:
    def plan(*args: Any, **_: Any) -> Any:
        return _pix_plan.plan(*args, loads=loads)

    with mock.patch.object(pix, "plan", plan), mock.patch.object(_pix_plan, "_OF_A_THREAD", held):
        yield


def distinct(case: Case) -> Case:
    """Without choices that launch what one before them does."""
    choices: dict[str, Any] = {}
    for name, context in case.choices.items():
        with context():
            launch, _further = case.plan()
        choices.setdefault(repr((launch.grid, launch.arguments, launch.constants)), (name, context))
    return case._replace(choices=dict(choices.values()))


def launches(case: Case) -> dict[str, Callable[[], None]]:
    """Each choice's launch, having run once; so it is compiled, and gives what the present one gives."""
    found: dict[str, Callable[[], None]] = {}
    output, expected = case.tensors[-1], None
    for name, context in case.choices.items():
        with context():
            launch, further = case.plan()
            found[name] = functools.partial(launch, *case.tensors, *further)
        output.fill_(math.nan)
        found[name]()
        expected = output.double() if expected is None else expected
        if not (output.double() - expected).abs().max() <= 16 * torch.finfo(output.dtype).eps * expected.abs().max():
            raise SystemExit(f"{case.name}: {name} gives something else than {PRESENT}: not timed")
    return found


def time_case(case: Case, rounds: int = ROUNDS, time_call: Callable[..., float] = gpu_ms) -> dict[str, float]:
    """The least milliseconds of each choice, and of a copy that moves as many bytes."""
    source, target = torch.empty(
        (2, sum(tensor.nbytes for tensor in case.tensors) // 2), dtype=torch.uint8, device=case.tensors[0].device
    )
    calls: dict[str, Callable[[], object]] = {**launches(case), "copy": lambda: target.copy_(source)}
    return {name: min(times) for name, times in interleave(calls, rounds, time_call=time_call).items()}


def table(case: Case, times: dict[str, float]) -> Table:
    rows = Table("tile", "ms", "of a copy's bandwidth", title=case.name)
    for name, ms in sorted(times.items(), key=lambda item: item[1]):
        rows.add_row(name, f"{ms:.4f}", f"{times['copy'] / ms:.0%}", style="bold" if name == PRESENT else "")
    return rows


def cases(only: str, batch: int, dtype: torch.dtype) -> Iterator[Case]:
    makers = soft_pool_cases, pix_cases
    return (distinct(case) for make in makers for case in make(batch, dtype) if only in case.name)


def _compile(number: int, choice: str, *which: Any) -> None:
    case = nth(cases, number, *which)
    with case.choices[choice]():
        launch, further = case.plan()
        launch(*case.tensors, *further)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a case's name, as 'k=3' or 'r=4 forward'")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples of a map")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--processes", type=int, default=4, help="that compile, before anything is timed")
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        raise SystemExit("there is no GPU here: Triton's kernels can't be timed")
    which = options.only, options.batch, getattr(torch, options.dtype)
    found = [list(case.choices) for case in cases(*which)]
    tasks = [(n, choice, *which) for n, choices in enumerate(found) for choice in choices]
    compile_in(options.processes, _compile, tasks)
    for case in cases(*which):
        Console().print(table(case, time_case(case)))


if __name__ == "__main__":
    main()
