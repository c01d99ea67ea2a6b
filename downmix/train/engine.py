"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset

from .._cudnn import convolutions_by_time
from ..layers import linear_density, set_density
from . import evaluation
from .checkpoint import check_unused, find_newest, read_checkpoint
from .data import Batch, close, create_evaluation_loader, create_training_loader, deaths_told, set_position
from .distributed import World, join
from .images import DataError, NoScoreError
from .losses import LaggedLosses
from .output import Output
from .recipe import Recipe
from .signals import Interrupted, Signals
from .state import Epoch, State, seed_everything
from .task import Task
from .tasks import create_task
from .testing import run_test
from .update import Update
from .watch import Watch
from .weights import check_classes
from .writable import only_writer


def train(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    resume: str = "",
    task: Task | None = None,
    model: nn.Module | None = None,
    console: Console | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Epoch]:
    """Trains by a recipe, alone or with the processes that torchrun started.

    Args:
        recipe: how.
        output: folder of checkpoints, logs and curves; None writes nothing.
        resume: ``"auto"`` goes on from the newest whole checkpoint in ``output``, if there is one; a path from that
            checkpoint, and what is later in ``output`` is moved to a folder there; empty starts anew. Where torchrun
            starts again what has written a checkpoint, it is ``"auto"``.
        task: what is learned, where the data are open already.
        model: the network to train, in place; None creates the recipe's.
        console: where progress and notes go.
        on_step: called after every step, with the steps done and the steps in all, in place of the progress bar.

    Returns:
        One :class:`Epoch` for each epoch.

    Raises:
        ValueError: if recipe, data or checkpoint can't be used.
        FloatingPointError: where the loss is no longer finite, with the step and the samples it happened at.
        Interrupted: after SIGINT or SIGTERM, once the step is finished and written.
    """
    with join(recipe.torch_device()) as world, Signals() as signals, convolutions_by_time(), ExitStack() as held:
        with world.together():
            recipe.check_training()
            out = Output(None if output is None else Path(output), recipe, world, console or Console(stderr=True))
            if out.folder and world.is_first:
                held.enter_context(only_writer(out.folder))
            found = _find_checkpoint(out, resume)
        training = Training(recipe, world, signals, task, model, resumed=found is not None)
        training.begin(out, resume, found)
        try:
            with deaths_told(), Watch(out, training.state, on_step) as watch:
                return training.run(out, watch)
        finally:
            close(training.loader)
            close(training.val_loader)


class Training:
    """One training: its state, and how it moves on by a step, an epoch, to its end."""

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        signals: Signals,
        task: Task | None = None,
        model: nn.Module | None = None,
        resumed: bool = False,
    ):
        self.recipe, self.world, self.signals = recipe, world, signals
        seed_everything(recipe.seed, rank=0)  # every process starts from the same weights
        with world.together():
            # The weights that a resumed training once started from may be gone by now.
            self.task = task or create_task(replace(recipe, init=None, pretrained=False) if resumed else recipe)
            self.loader, self.batches = create_training_loader(self.task.train_data, recipe, world)
            self.val_loader = create_evaluation_loader(self.task.val_data, recipe, world)
            model = (model or self.task.create_model()).to(world.device)
            if recipe.channels_last:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if recipe.sync_bn and world.size > 1:
                if world.device.type != "cuda":
                    raise ValueError("sync_bn needs CUDA devices; leave it out on the CPU")
                model = convert_sync_batchnorm(model)
            self.state = State(model, recipe, world, self.batches.steps, self.batches.global_batch)
        self._set_density(0)  # which refuses networks that have none before there is a progress bar
        self.network = self._prepare(model)
        self.update = Update(self.network, self.state, self.task, recipe, world)
        self.losses = LaggedLosses(recipe)
        seed_everything(recipe.seed, world.rank)

    def _prepare(self, model: nn.Module) -> nn.Module:
        network = model
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        return torch.compile(network) if self.recipe.compile else network  # type: ignore[return-value]

    def begin(self, out: Output, resume: str, found: tuple[Path, dict[str, Any]] | None) -> None:
        """Goes back to a checkpoint where one was found."""
        out.class_names = list(self.task.class_names)
        with self.world.together():
            if found:
                path, saved = found
                check_classes(saved.get("class_names", []), out.class_names, path)
                self.state.restore(saved, path)
                out.bad.update(saved.get("bad_images", []))  # earlier versions kept none
                out.note_differences(saved["recipe"])
                out.say(f"going on from {path}, after {self.state.done} steps")
                if resume != "auto":  # which takes the newest
                    out.set_aside_later(saved)
            out.write_recipe()
        (behind,) = self.world.agree(out.is_behind(self.state.progress))
        if behind:
            out.write_epoch(self.state)

    def run(self, out: Output, watch: Watch) -> list[Epoch]:
        progress = self.state.progress
        while progress.epoch < self.recipe.epochs and not self._stalled():
            seconds = self._train_epoch(out, watch)
            metrics = self._evaluate(out)
            total, count = self.world.sum(progress.loss_sum, progress.loss_count)
            train_loss = total / count if count else math.nan  # of an epoch whose steps were all left out
            progress.history.append(Epoch(train_loss, self.state.lr, seconds, metrics))
            progress.epoch, progress.step, progress.loss_sum, progress.loss_count = progress.epoch + 1, 0, 0.0, 0
            if metrics[self.task.deciding] > progress.best:
                progress.best, progress.best_epoch = metrics[self.task.deciding], progress.epoch
            watch.epoch(progress.history[-1], progress.epoch)
            out.write_epoch(self.state)
        if progress.epoch < self.recipe.epochs:
            out.say(f"ended early: no better {self.task.deciding} since epoch {progress.best_epoch}")
        out.write_summary(progress, self.task.deciding)
        self._set_density(progress.epoch - 1)  # no checkpoint holds it, and a finished training trains no more
        if not run_test(self.state.evaluated, self.task, self.world, out, self.signals):
            self._stop(out)
        return progress.history

    def _evaluate(self, out: Output) -> dict[str, float]:
        try:
            metrics = evaluation.evaluate(
                self.state.evaluated,
                self.task,
                self.val_loader,
                self.world,
                signals=self.signals,
                on_batch=lambda batch, output: out.note_bad(batch.bad),
            )
        except NoScoreError as error:
            if not self.world.is_first:
                raise SystemExit(2) from error
            raise NoScoreError(f"there are no figures on the held-out samples: {error}") from error
        return metrics if metrics is not None else self._stop(out)

    def _stalled(self) -> bool:
        progress, patience = self.state.progress, self.recipe.early_stop
        return patience > 0 and progress.epoch - progress.best_epoch >= patience

    def _train_epoch(self, out: Output, watch: Watch) -> float:
        progress, start = self.state.progress, time.perf_counter()
        set_position(self.loader, self.batches, progress.epoch, progress.step)
        self._set_density(progress.epoch)
        self.network.train()
        for batches in self._steps():
            for batch in batches:
                out.note_bad(batch.bad)
            loss = self.update(batches)
            progress.step += 1
            self.state.scheduler.step_update(self.state.done)
            if loss is not None:
                self.losses.push(loss, self.state, batches)
            watch.step(self.losses.newest)
            signal, fault, due = self.world.agree(self.signals.received, self.losses.fault is not None, out.is_due())
            if fault:
                self._raise_fault()
            if signal:
                self._stop(out)
            every = self.recipe.checkpoint_every_steps
            if due or (every and progress.step % every == 0 and progress.step < self.state.steps):
                self._write(out)
        self._settle()
        return time.perf_counter() - start

    def _set_density(self, epoch: int) -> None:
        if self.recipe.fbs_density:
            density = linear_density(epoch, self.recipe.fbs_epochs, self.recipe.fbs_density)
            for model in {self.state.model, self.state.evaluated}:
                set_density(model, density)

    def _steps(self) -> Iterator[list[Batch]]:
        """The batches of each remaining step of the epoch; a stream that ends too early begins again."""
        loader = self.loader if self.state.progress.step < self.state.steps else ()
        batches = iter(loader)
        for _ in range(self.state.progress.step, self.state.steps):
            step = list(islice(batches, self.recipe.accumulate))
            if len(step) < self.recipe.accumulate and isinstance(self.loader.dataset, IterableDataset):
                batches = iter(self.loader)
                step += islice(batches, self.recipe.accumulate - len(step))
            if len(step) < self.recipe.accumulate:
                raise DataError("the training stream gives no batch to one of the workers; lower workers or batch_size")
            yield step

    def _settle(self) -> None:
        """Waits for all losses, so that nothing is written or evaluated after one that is not finite."""
        self.losses.settle(self.state)
        (fault,) = self.world.agree(self.losses.fault is not None)
        if fault:
            self._raise_fault()

    def _raise_fault(self) -> NoReturn:
        sentences = [sentence for sentence in self.world.gather(self.losses.fault) if sentence]
        if not self.world.is_first:
            raise SystemExit(2)
        raise FloatingPointError(sentences[0])

    def _write(self, out: Output) -> None:
        self._settle()
        out.write_checkpoint(self.state)

    def _stop(self, out: Output) -> NoReturn:
        (signal,) = self.world.agree(self.signals.received)
        self._write(out)
        stop = Interrupted(signal)
        if out.folder:
            out.say(f"{stop} after step {self.state.done}, which is written; go on with --resume auto")
        raise stop


def _find_checkpoint(out: Output, resume: str) -> tuple[Path, dict[str, Any]] | None:
    folder, path = out.folder, Path(resume)
    if folder and out.world.remembers(str(folder)):
        resume = "auto"  # this start has written there, and torchrun started it again
    if resume == "auto":
        return find_newest(folder, out.warn) if folder else None
    if resume and not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; --resume takes auto, or the path of a .pt file")
    is_own = folder and resume and path.resolve().parent == folder.resolve()
    if folder and not is_own:
        check_unused(folder)
    return (path, read_checkpoint(path)) if resume else None
