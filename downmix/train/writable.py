"""Says at the start, before any work is done, where its results could not be written at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of a folder until the block ends, or the process does, in whatever way.

    Raises:
        ValueError: if one is in it already.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError):
            import fcntl  # here: Windows has none

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another training writes into {folder}; wait until it has ended, or give another --output"
                ) from error
            except OSError:  # some network file systems lock no folders
                pass
        yield
    finally:
        os.close(descriptor)


def _make(folder: Path, wanted: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions don't tell: root has them all, and a read-only disk asks for none.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
        reason = f"{there}: {error.strerror}" if there.is_dir() else f"{there} is a file"
        raise ValueError(f"{wanted} ({reason}); choose another, or make it writable") from error
