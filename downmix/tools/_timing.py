"""Timing that a noisy machine can't bend to one side: the calls to compare take turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def wall_ms(call: Callable[[], object]) -> float:
    """The milliseconds that one call takes, from an idle device until it is idle again."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def interleave(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    time_call: Callable[[Callable[[], object]], float] = wall_ms,
) -> dict[str, list[float]]:
    """Times each call once a round, each after every other equally often, and returns the milliseconds of every round.

    What came before decides what lies in the cache, so that a random order favours some.

    Args:
        calls: what to time, by name. All are warmed up before the first is timed.
        rounds: how often each is timed.
        warmup: untimed calls of each.
        time_call: gives the milliseconds of one call.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    names = list(calls)
    for order in itertools.islice(itertools.cycle(_orders(len(names))), rounds):
        for i in order:
            times[names[i]].append(time_call(calls[names[i]]))
    return times


def _orders(count: int) -> list[list[int]]:
    """Orders of 0 to count − 1 in which each number follows each other one equally often (Williams, 1949)."""
    zigzag = [0]
    for step in range(1, count):
        zigzag.append((zigzag[-1] + (step if step % 2 else -step)) % count)
    rows = [[(place + i) % count for place in zigzag] for i in range(count)]
    return [*rows, *(row[::-1] for row in rows)]


def summarize(times_ms: list[float]) -> dict[str, float]:
    """Minimum, median and the 20 % and 80 % quantiles."""
    quantiles = statistics.quantiles(times_ms, n=5, method="inclusive")
    return {
        "min": min(times_ms),
        "median": statistics.median(times_ms),
        "p20": quantiles[0],
        "p80": quantiles[-1],
    }


def train_step(
    network: nn.Module, images: Tensor, labels: Tensor, criterion: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """One bare forward pass, backward pass and update."""
    loss = criterion(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def synchronize() -> None:
    """Waits until the GPU, if one is in use, is idle."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
