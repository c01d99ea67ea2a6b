"""All that a training changes as it goes, and how it is kept and brought back."""

from __future__ import annotations

import platform
import random
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import timm.optim
import timm.scheduler
import torch
from timm.utils import ModelEmaV3
from torch import nn

from .distributed import World
from .recipe import Recipe
from .weights import start_from


@dataclass
class Epoch:
    """What one epoch gave.

    Attributes:
        train_loss: the mean over the epoch's steps and all processes.
        lr: the learning rate after its last step.
        seconds: of training, without evaluation; of the part since the last resume, where there was one.
        metrics: on the held-out samples; shares are between 0 and 1.
    """

    train_loss: float
    lr: float
    seconds: float
    metrics: dict[str, float]


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: epochs that are done.
        step: steps of the current epoch that are done.
        loss_sum, loss_count: of this process's steps of the current epoch.
        skipped: steps left out because their loss was not finite.
        history: what the epochs gave.
        best, best_epoch: highest value of the deciding metric, and after how many epochs.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: int = 0
    history: list[Epoch] = field(default_factory=list)
    best: float = -float("inf")
    best_epoch: int = 0


class State:
    """Model, optimiser, schedule, scaler and moving average of one training.

    Args:
        model: the network, on its device.
        recipe: how it is trained.
        steps: optimiser steps of an epoch.
        global_batch: samples of a step, over all processes.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, world: World, steps: int, global_batch: int):
        self.model, self.recipe, self.world = model, recipe, world
        self.steps, self.global_batch = steps, global_batch
        scale = global_batch / recipe.lr_base_batch if recipe.lr_base_batch else 1.0
        lr = recipe.lr * scale
        self.optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay or None,
        )
        self.scheduler: Any = timm.scheduler.create_scheduler_v2(
            self.optimizer,
            sched=recipe.sched,
            decay_rate=recipe.decay_rate,
            decay_epochs=recipe.decay_epochs or None,
            decay_milestones=recipe.decay_milestones,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=lr / 100,
            min_lr=recipe.min_lr * scale,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )[0]
        self.scheduler.step_update(0)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.amp == "fp16")
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.progress = Progress()

    @property
    def done(self) -> int:
        """Optimiser steps since the beginning."""
        return self.progress.epoch * self.steps + self.progress.step

    @property
    def lr(self) -> float:
        """The learning rate now; with layer_decay that of the highest layer, as those below have less."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def evaluated(self) -> nn.Module:
        """The network that counts: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    def collect(self) -> dict[str, Any]:
        """Everything as tensors and plain values. Every process has to take part."""
        progress = self.progress
        mine = {"random": random_states(), "loss_sum": progress.loss_sum, "loss_count": progress.loss_count}
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),  # for readers: recipe and step decide where a resume goes on
            "scaler": self.scaler.state_dict(),
            "progress": asdict(progress),
            "position": progress.step * self.global_batch,
            "processes": self.world.gather(mine),
            "recipe": asdict(self.recipe),
            "versions": versions(),
        }

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        """Goes back to what :meth:`collect` gave; ``path`` is where that was read.

        Raises:
            ValueError: if it belongs to another network or optimiser.
        """
        before = saved["recipe"]["opt"]
        if before != self.recipe.opt:
            raise ValueError(
                f"{path} keeps the state of opt {before}, the recipe has opt {self.recipe.opt}; give --opt {before}, "
                f"or start anew from its weights with --init {path}"
            )
        for name in ("weight_decay", "layer_decay"):  # with one, parameters lie in other groups than without
            before, now = saved["recipe"].get(name, 0.0), getattr(self.recipe, name)
            if bool(before) != bool(now):
                raise ValueError(
                    f"{path} keeps the optimiser's state as {name} {before} groups it, the recipe has {name} {now}; "
                    f"give --{name} {before}, or start anew from its weights with --init {path}"
                )
        try:
            start_from(self.model, saved["model"], path)
            if self.ema:
                self.ema.module.load_state_dict(saved["ema"] or saved["model"])
            self._restore_optimizer(saved["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint is of another training and does not fit this one; give the same recipe ({error})"
            ) from error
        if saved["scaler"]:  # empty where amp was another
            self.scaler.load_state_dict(saved["scaler"])
        progress = saved["progress"]
        history = [Epoch(**epoch) for epoch in progress.pop("history")]
        self.progress = Progress(**progress, history=history)
        # With another number of processes a step takes other samples; some may come twice then, none is left out.
        self.progress.step = saved["position"] // self.global_batch
        self.scheduler.step_update(self.done)
        mine = saved["processes"][self.world.rank] if self.world.rank < len(saved["processes"]) else None
        if mine:
            self.progress.loss_sum, self.progress.loss_count = mine["loss_sum"], mine["loss_count"]
            set_random_states(mine["random"])
        else:
            seed_everything(self.recipe.seed, self.world.rank)

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """Its tensors are the checkpoint's, its settings the recipe's, which may be another by now."""
        own = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved)
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            # Some optimisers count their steps there; that is no setting.
            group.update({name: value for name, value in settings.items() if not name.endswith("step")})


def seed_everything(seed: int, rank: int) -> None:
    """Seeds the global generators of this process."""
    random.seed(f"{seed} {rank}")
    np.random.seed(random.getrandbits(32))
    torch.manual_seed(random.getrandbits(63))


def random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("downmix", "torch", "timm", "torchvision", "torchmetrics", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
