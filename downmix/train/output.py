"""What a training writes and says. Only the first process does either."""

from __future__ import annotations

import csv
import io
import json
import time
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from torch import Tensor

from .checkpoint import find_later, keep_as, read_checkpoint, write_checkpoint, write_weights, write_whole
from .curves import draw_curves
from .distributed import World
from .recipe import Recipe
from .state import Epoch, Progress, State
from .writable import check_folder

# Fields that change nothing in what is computed.
_FREE = {
    *("workers", "device", "data_dir", "log_every", "wandb", "keep_last", "keep_every", "on_bad_image"),
    *("checkpoint_every_steps", "checkpoint_every_minutes"),
}
# Without its table, an epoch that training goes back to is behind, so that these are written anew.
_OF_THE_LAST_EPOCH = ("last.safetensors", "epochs.csv", "summary.json", "curves.png", "test.json")


class Output:
    """The folder of one training, and the console.

    Args:
        folder: where everything goes; None writes nothing.
        recipe: is written to ``recipe.yaml``.
        world: says whether this process is the first.
        console: where notes go.

    Attributes:
        class_names: what checkpoints and weights say the classes are called.
        bad: sentences about the images that this process could not read, and those that :meth:`share_bad` brought.

    Raises:
        ValueError: where the folder can't be written.
    """

    def __init__(self, folder: Path | None, recipe: Recipe, world: World, console: Console):
        self.folder, self.recipe, self.world = folder, recipe, world
        self.console = console if world.is_first else Console(quiet=True)
        self.class_names: list[str] = []
        self.bad: set[str] = set()
        self._written = time.monotonic()
        if folder and world.is_first:
            check_folder(folder)

    def write_recipe(self) -> None:
        if self.folder and self.world.is_first:
            self._write("recipe.yaml", yaml.safe_dump(asdict(self.recipe), sort_keys=False, allow_unicode=True))

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def note_bad(self, sentences: list[str]) -> None:
        """Names each image that can't be read once."""
        for sentence in sentences:
            if sentence not in self.bad:
                self.bad.add(sentence)
                self.warn(sentence)

    def share_bad(self) -> None:
        """Names what the other processes could not read. Every process has to take part."""
        for sentences in self.world.gather(sorted(self.bad)):
            self.note_bad(sentences)

    def note_differences(self, saved: dict[str, Any]) -> None:
        """Names the fields in which a checkpoint's recipe is another one."""
        for name, value in asdict(self.recipe).items():
            if name in saved and name not in _FREE and saved[name] != value:
                self.warn(f"the checkpoint was made with {name} {saved[name]}; this goes on with {value}")

    def set_aside_later(self, saved: dict[str, Any]) -> None:
        """Moves what came later than ``saved``, to which training goes back, out of the way of what comes now."""
        if not self.folder or not self.world.is_first or not (later := find_later(self.folder, saved)):
            return
        aside = next(path for i in count(1) if not (path := self.folder / f"abandoned-{i}").exists())
        aside.mkdir()
        best = self.folder / "best.pt"
        names = [path.name for path in later] + ["best.safetensors"] * (best in later)
        for name in (*names, *_OF_THE_LAST_EPOCH):
            with suppress(FileNotFoundError):
                (self.folder / name).rename(aside / name)
        self.say(f"what came later is now in {aside}")
        epoch = saved["progress"]["best_epoch"]
        kept = self.folder / f"epoch-{epoch:04d}.pt"
        if best in later and kept.exists():
            before = read_checkpoint(kept)
            keep_as(kept, "best.pt")
            self._write_weights("best.safetensors", before["ema"] or before["model"], before["recipe"], epoch)

    def is_due(self) -> bool:
        """Whether the first process wants a checkpoint because of the time."""
        minutes = self.recipe.checkpoint_every_minutes
        return bool(self.folder and minutes and self.world.is_first and time.monotonic() - self._written > 60 * minutes)

    def write_checkpoint(self, state: State) -> Path | None:
        """Writes where the training is. Every process has to take part."""
        self.share_bad()
        if not self.folder:
            return None
        saved = state.collect() | {"class_names": self.class_names, "bad_images": sorted(self.bad)}
        self._written = time.monotonic()
        if not self.world.is_first:
            return None
        path = write_checkpoint(self.folder, saved, state.done, self.recipe.keep_last)
        self.world.remember(str(self.folder))
        return path

    def is_behind(self, progress: Progress) -> bool:
        """Whether an epoch is done of whose files the last is not there, as after a death in their midst."""
        if not self.folder or not self.world.is_first or not progress.epoch or progress.step:
            return False
        table = self.folder / "epochs.csv"
        return not table.exists() or table.read_bytes() != _table(progress.history).encode()

    def write_epoch(self, state: State) -> None:
        """Writes what there is after an epoch: checkpoints, weights, the table of all epochs."""
        path = self.write_checkpoint(state)
        if not self.folder or not path:
            return
        epoch = state.progress.epoch
        weights = self._write_weights("last.safetensors", state.evaluated.state_dict(), asdict(self.recipe), epoch)
        if state.progress.best_epoch == epoch:
            keep_as(path, "best.pt")
            keep_as(weights, "best.safetensors")
        if self.recipe.keep_every and epoch % self.recipe.keep_every == 0:
            keep_as(path, f"epoch-{epoch:04d}.pt")
        self._write("epochs.csv", _table(state.progress.history))  # last, as is_behind wants it

    def write_summary(self, progress: Progress, deciding: str) -> None:
        """Says how the training went, and draws its curves."""
        if not progress.history or not self.world.is_first:
            return
        last = progress.history[-1]
        if self.bad:
            self.warn(f"{len(self.bad)} image{'s' if len(self.bad) > 1 else ''} could not be read")
        self.say(
            f"best {deciding} {progress.best:.4f} after epoch {progress.best_epoch}, last {last.metrics[deciding]:.4f}"
        )
        if self.folder:
            summary = {
                "epochs": progress.epoch,
                "best_epoch": progress.best_epoch,
                f"best_{deciding}": progress.best,
                "last": without_nan(last.metrics),
                **without_nan({"train_loss": last.train_loss}),
                "skipped_steps": progress.skipped,
                "bad_images": sorted(self.bad),
            }
            self._write("summary.json", json.dumps(summary, indent=1) + "\n")
            draw_curves(progress.history, self.folder / "curves.png")
            names = ("best.pt", "best.safetensors", "epochs.csv", "summary.json", "curves.png")
            self.say(f"results: {self.folder}/{', '.join(name for name in names if (self.folder / name).exists())}")

    def write_test(self, metrics: dict[str, float]) -> None:
        """Says and writes how the network does on the test samples."""
        named = {"loss" if name == "val_loss" else name: value for name, value in metrics.items()}
        self.say("on the test samples:\n" + "\n".join(f"  {name} {value:.4f}" for name, value in named.items()))
        if self.folder and self.world.is_first:
            self._write("test.json", json.dumps(without_nan(named), indent=1) + "\n")

    def _write_weights(self, name: str, state: dict[str, Tensor], recipe: dict[str, Any], epoch: int) -> Path:
        assert self.folder is not None
        facts = {"recipe": json.dumps(recipe), "epoch": str(epoch), "class_names": json.dumps(self.class_names)}
        write_weights(self.folder / name, state, facts)
        return self.folder / name

    def _write(self, name: str, text: str) -> None:
        assert self.folder is not None
        write_whole(self.folder / name, lambda file: file.write(text.encode()))


def without_nan(metrics: dict[str, float]) -> dict[str, float | None]:
    """The metrics as JSON can hold them, which has neither NaN nor infinity."""
    return {name: value if isfinite(value) else None for name, value in metrics.items()}


def _table(history: list[Epoch]) -> str:
    text = io.StringIO()
    rows = [
        {"epoch": i, "train_loss": epoch.train_loss, "lr": epoch.lr, "seconds": round(epoch.seconds, 3)} | epoch.metrics
        for i, epoch in enumerate(history, 1)
    ]
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
