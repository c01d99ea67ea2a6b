"""Timing that a noisy machine can't bend to one side: the calls to compare take turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def wall_ms(call: Callable[[], object]) -> float:
    """The milliseconds that one call takes, from an idle device until it is idle again."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return (time.perf_counter() - start) * 1e3


def interleave(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    time_call: Callable[[Callable[[], object]], float] = wall_ms,
) -> dict[str, list[float]]:
    """Times each call once a round, in a random order, and returns the milliseconds of every round.

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
    order = random.Random(0)
    names = list(calls)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            times[name].append(time_call(calls[name]))
    return times


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


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
