"""Says at the start, before any work is done, where its results could not be written at the end."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def check_folder(path: Path, name: str = "output") -> None:
    """Makes a folder, and those around it, where it is not there yet.

    Args:
        path: the folder.
        name: of the argument that gave it.

    Raises:
        ValueError: if it can't be made, or nothing can be written into it.
    """
    _make(path, f"{name} must be a folder that can be written, got {path}")


def check_file(path: Path, name: str = "output") -> None:
    """Makes the folder of a file where it is not there yet; the file itself stays as it is, or away.

    Args:
        path: the file.
        name: of the argument that gave it.

    Raises:
        ValueError: if it can't be written.
    """
    wanted = f"{name} must be a file that can be written, got {path}"
    if os.path.isdir(path):  # Path's own raise where the folder around can't be looked into
        raise ValueError(f"{wanted}, which is a folder; add the name of a file")
    if not os.path.exists(path):
        _make(path.parent, wanted)
    elif path.is_file():  # to open a pipe would wait for who reads it
        try:
            path.open("ab").close()
        except OSError as error:
            raise ValueError(f"{wanted} ({error.strerror}); choose another, or make it writable") from error


def _make(folder: Path, wanted: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions don't tell: root has them all, and a read-only disk asks for none.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
        reason = f"{there}: {error.strerror}" if there.is_dir() else f"{there} is a file"
        raise ValueError(f"{wanted} ({reason}); choose another, or make it writable") from error
