"""Checkpoints that a crash can't spoil, and that can't run code when they are read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save
from torch import Tensor

from .. import published

_PARTS = {"model", "optimizer", "scaler", "progress", "position", "processes", "recipe"}  # what a resume needs


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read, in a sentence."""


def write_checkpoint(folder: Path, state: dict[str, Any], step: int, keep_last: int) -> Path:
    """Writes ``step-XXXXXXXX.pt``, and leaves it and the ``keep_last`` - 1 before it of its kind.

    Those of later steps go: they are broken, or were counted in smaller batches.

    Raises:
        CheckpointError: where the disk is full or refuses; what was written before stays.
    """
    path = folder / f"step-{step:08d}.pt"
    write_whole(path, lambda file: torch.save(state, file))
    kept = [each for number, each in _numbered(folder, "step") if number <= step][-keep_last:]
    for _, other in _numbered(folder, "step"):
        if other not in kept:
            other.unlink(missing_ok=True)
    for left in folder.glob(".step-*.pt.partial"):  # by a death while it was written
        left.unlink(missing_ok=True)
    return path


def keep_as(path: Path, name: str) -> None:
    """Keeps a checkpoint or weights under a second name, without a second copy where the file system can do that."""
    target = path.with_name(name)
    temporary = target.with_name(f".{name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        with open(path, "rb") as source:
            write_whole(target, lambda file: shutil.copyfileobj(source, file))
    else:
        os.replace(temporary, target)


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the weights alone as safetensors, which timm and others read."""
    # Copies, as safetensors takes neither tensors that share memory nor channels_last.
    state = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_whole(path, lambda file: file.write(save(state, metadata)))


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that after a crash the old one or the new one is there, never a half."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # a read-only file system refuses this too
            temporary.unlink()
        inner = error.__context__  # of torch.save's RuntimeError, which does not say what the file said
        raise CheckpointError(
            f"{path} can't be written ({inner if isinstance(inner, OSError) else error}); what was written before "
            "stays: make room, or the folder writable, then go on with --resume auto"
        ) from error
    _flush_folder(path.parent)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of downmix, tensors and plain values only.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is cut off or damaged, no checkpoint of downmix, or reading it could run code.
    """
    try:
        state = published.read_file(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(state, dict) or not state.keys() >= _PARTS or not isinstance(state["recipe"], dict):
        raise CheckpointError(f"{path} is no checkpoint of `downmix train`")
    return state


def find_newest(folder: Path, warn: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of ``folder`` that is whole; ``warn`` hears of each that is not."""

    def whole(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in paths:
            try:
                yield path, read_checkpoint(path)
            except CheckpointError as error:
                warn(f"{error}; trying an older one")
            except OSError as error:  # a link to nothing, say
                warn(f"{path} can't be read ({error.strerror}); trying an older one")

    if found := next(whole(path for _, path in reversed(_numbered(folder, "step"))), None):
        return found
    kept = sorted(folder.glob("epoch-*.pt"), reverse=True), folder.glob("best.pt")  # either may be the newer one
    if newest := [found for paths in kept if (found := next(whole(paths), None))]:
        return max(newest, key=lambda found: found[1]["progress"]["epoch"])
    if has_checkpoints(folder):
        warn(f"{folder} holds no checkpoint that is whole; training begins anew")
    return None


def find_later(folder: Path, saved: dict[str, Any]) -> list[Path]:
    """The checkpoints of ``folder`` that are of a later moment than ``saved``, as far as they are whole."""

    def moment(state: dict[str, Any]) -> tuple[int, int]:
        return state["progress"]["epoch"], state["position"]

    later = [path for number, path in _numbered(folder, "epoch") if number > saved["progress"]["epoch"]]
    for path in (*(path for _, path in _numbered(folder, "step")), folder / "best.pt"):
        with suppress(CheckpointError, FileNotFoundError):
            if moment(read_checkpoint(path)) > moment(saved):  # not by number: that of a step depends on the batch
                later.append(path)
    return later


def check_unused(folder: Path) -> None:
    """Raises a ValueError where a training has written into ``folder``."""
    if has_checkpoints(folder):
        raise ValueError(
            f"{folder} holds checkpoints of a training; go on with --resume auto, or give another --output"
        )


def has_checkpoints(folder: Path) -> bool:
    return any(folder.glob("*.pt"))


def _numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    name = re.compile(rf"{kind}-(\d+)\.pt")
    files = (path for path in folder.glob("*.pt") if not path.is_dir())
    return sorted((int(found[1]), path) for path in files if (found := name.fullmatch(path.name)))


def _flush_folder(folder: Path) -> None:
    """A rename is on disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
