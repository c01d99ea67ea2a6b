"""Watching a training: the progress bar, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .checkpoint import CheckpointError, write_whole
from .output import Output
from .state import Epoch, State


class Watch:
    """Shows how far a training is, and logs its curves. A ``with`` block, so that everything is closed again.

    Args:
        out: where the logs go, and whose console shows the bar.
        state: the training.
        on_step: called after each step instead of moving a bar.
    """

    def __init__(self, out: Output, state: State, on_step: Callable[[int, int], None] | None):
        self.out, self.state, self.on_step = out, state, on_step
        self.speaks = out.world.is_first
        self.bar: Progress | None = None
        self.board: Any = None
        self.wandb: Any = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        recipe, state = self.out.recipe, self.state
        self.total = recipe.epochs * state.steps
        with self.out.world.together():
            if self.out.folder and self.speaks:
                from torch.utils.tensorboard import SummaryWriter  # here: seconds to import

                if recipe.wandb:  # first: it may raise, and nothing is to be closed yet
                    self.wandb = self._closing.enter_context(_start_wandb(self.out))
                # From the next step on: those that are done are not logged again.
                with _refusal_told(folder := str(self.out.folder / "tensorboard")):
                    self.board = SummaryWriter(folder, purge_step=state.done + 1)
                self._closing.enter_context(_refusal_told(folder))
                self._closing.callback(self.board.close)
        if self.on_step is None and self.speaks:
            progress = Progress(
                *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
                *(TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}")),
                console=self.out.console,
                refresh_per_second=2,
                speed_estimate_period=600,  # of 30 seconds, which is rich's own, a step may take more
            )
            self.bar = self._closing.enter_context(progress)
            self.line = self.bar.add_task(recipe.model, total=self.total, completed=state.done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def step(self, loss: float) -> None:
        """After a step; ``loss`` is the newest that is known."""
        done = self.state.done
        if self.on_step:
            self.on_step(done, self.total)
        if not self.speaks:
            return
        if self.bar:
            self.bar.update(self.line, completed=done, note=self._note(loss))
        if self.board and done % self.out.recipe.log_every == 0 and loss == loss:
            self._log({"train/loss": loss, "train/lr": self.state.lr})

    def epoch(self, epoch: Epoch, number: int) -> None:
        """After an epoch and its evaluation."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items() if "/" not in name)
        if self.on_step is None:
            self.out.say(f"epoch {number}: loss {epoch.train_loss:.4f}  {values}  {epoch.seconds:.1f} s")
        if self.speaks:
            self._log({"epoch/train_loss": epoch.train_loss} | {f"epoch/{k}": v for k, v in epoch.metrics.items()})

    def _note(self, loss: float) -> str:
        assert self.bar is not None
        speed = self.bar.tasks[self.line].speed
        images = (speed or 0) * self.state.global_batch
        rate = f"{images:,.{0 if images >= 10 else 1}f} images/s" if images else ""
        most = _most_bytes(self.out.world.device)
        return f"loss {loss:.3f}  {rate}" + (f"  {most / 2**30:.1f} GiB" if most else "")

    def _log(self, values: dict[str, float]) -> None:
        """By steps, those of epochs too: what a training goes back from is purged by its step."""
        if self.board:
            with _refusal_told(self.board.log_dir):
                for name, value in values.items():
                    self.board.add_scalar(name, value, self.state.done)
        if self.wandb:
            self.wandb.log(values | {"step": self.state.done})


@contextlib.contextmanager
def _refusal_told(folder: str) -> Iterator[None]:
    """Says it in a sentence where the disk refuses TensorBoard, which writes in a thread and tells at a later call."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} can't be written ({error}); what was written before stays: make room, or the folder writable, "
            "then go on with --resume auto"
        ) from error


def _most_bytes(device: torch.device) -> int:
    """The most memory that was in use: of the GPU, or of this process; 0 where the system doesn't say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):
        import resource  # here: Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def _start_wandb(out: Output) -> Any:
    """The run of the output folder: a training that goes on there goes on in the same curves."""
    assert out.folder
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("wandb was asked for, but is not installed: pip install wandb, or leave it out") from error
    name = out.folder / "wandb_run.txt"
    known = name.read_text() if name.exists() else None
    try:
        run = wandb.init(project="downmix", dir=out.folder, config=asdict(out.recipe), id=known, resume="allow")
    except wandb.Error as error:
        raise ValueError(
            f"Weights & Biases does not start ({error}); set WANDB_MODE=offline, or leave wandb out"
        ) from error
    write_whole(name, lambda file: file.write(run.id.encode()))
    run.define_metric("*", step_metric="step")  # what a kill lost is logged again: by W&B's own count, behind itself
    return run
