"""One step of the optimiser."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import fbs_penalty
from . import evaluation
from .data import Batch
from .distributed import World
from .recipe import Recipe
from .state import State
from .task import Task


class Update:
    """Moves the weights on by the gradients of a step's batches.

    Args:
        network: what is called: the state's model, perhaps distributed or compiled.
        state: model, optimiser, scaler and moving average.
        task: the loss, and the augmentation of whole batches.
    """

    def __init__(self, network: nn.Module, state: State, task: Task, recipe: Recipe, world: World):
        self.network, self.state, self.task = network, state, task
        self.recipe, self.world = recipe, world
        self._has_run = False

    def __call__(self, batches: list[Batch]) -> Tensor | None:
        """One update from ``batches``; returns its loss on the device, or None where the step was left out."""
        state, total = self.state, torch.zeros((), device=self.world.device)
        state.optimizer.zero_grad()
        # A step that is left out must leave nothing behind, and BatchNorm's statistics move in the forward pass.
        buffers = [(each, each.clone()) for each in state.model.buffers()] if self.recipe.skip_nan else []
        for i, batch in enumerate(batches, 1):
            images, targets = evaluation.to_device(batch, self.recipe, self.world)
            images, targets = self.task.augment(images, targets)
            with self._gradients_shared(last=i == len(batches)):
                with evaluation.mixed_precision(self.recipe, self.world):
                    loss = self.task.loss(self._outputs(images), targets)
                    if self.recipe.fbs_l1:
                        loss = loss + self.recipe.fbs_l1 * fbs_penalty(state.model)
                    loss = loss / len(batches)
                state.scaler.scale(loss).backward()
            total += loss.detach()
        if self.recipe.skip_nan and self._skips(total):
            for buffer, before in buffers:
                buffer.copy_(before)
            return None
        if self.recipe.clip_grad:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.recipe.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema:
            state.ema.update(state.model, step=state.done + 1)
        return total

    def _outputs(self, images: Tensor) -> Any:
        with evaluation.misfit_told(self.recipe.model, images, is_first=not self._has_run):
            output = self.network(images)
        self._has_run = True
        return output

    def _gradients_shared(self, last: bool) -> Any:
        if last or self.world.size == 1:
            return nullcontext()
        network: Any = getattr(self.network, "_orig_mod", self.network)
        return network.no_sync()

    def _skips(self, loss: Tensor) -> bool:
        """Whether this step is left out, by all processes, because one's loss is not finite."""
        (bad,) = self.world.agree(int(not loss.isfinite().item()))
        if not bad or self.state.progress.skipped >= self.recipe.skip_nan:
            return False
        self.state.progress.skipped += 1
        return True
