"""Reads losses a little late, so that no step waits for the device."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from .data import Batch
from .recipe import Recipe
from .state import State

_LAG = 2  # steps a GPU may be ahead of what is known of it


class _Pending(NamedTuple):
    value: Tensor
    ready: torch.cuda.Event | None
    step: int
    samples: list[int]


class LaggedLosses:
    """Adds up the losses of an epoch as they arrive, and notices one that is not finite.

    Attributes:
        newest: the newest loss that is known.
        fault: a sentence about the first loss that is not finite, once there was one.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.newest = math.nan
        self.fault: str | None = None
        self._pending: deque[_Pending] = deque()

    def push(self, loss: Tensor, state: State, batches: list[Batch]) -> None:
        ready = None
        if loss.is_cuda:
            loss = loss.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        samples = [index for batch in batches for index in batch.indices]
        self._pending.append(_Pending(loss, ready, state.done, samples))
        while len(self._pending) > (_LAG if ready else 0):
            self._take(state)

    def settle(self, state: State) -> None:
        """Waits for all losses that are still on the device."""
        while self._pending:
            self._take(state)

    def _take(self, state: State) -> None:
        pending = self._pending.popleft()
        if pending.ready:
            pending.ready.synchronize()
        value, progress = pending.value.item(), state.progress
        if math.isfinite(value):
            self.newest = value
            progress.loss_sum += value
            progress.loss_count += 1
        else:
            self.fault = self.fault or self._describe(pending, value, state)

    def _describe(self, pending: _Pending, value: float, state: State) -> str:
        epoch, step = divmod(pending.step - 1, state.steps)
        samples = ", ".join(map(str, pending.samples[:16])) + (", …" if len(pending.samples) > 16 else "")
        return (
            f"the loss became {value} in step {step + 1} of epoch {epoch + 1} (samples {samples or 'of a stream'}); "
            f"lower lr (now {self.recipe.lr}), or leave such steps out with a larger skip_nan (now "
            f"{self.recipe.skip_nan})"
        )
