"""Where tables and progress are shown."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def wide_console() -> Console:
    """Standard output; wide enough for long tables where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 180)


def progress_bars(console: Console, *, width: int = 42, transient: bool = False) -> Progress:
    """Bars with counts and the time left; descriptions fill ``width``, so that bars stay in place."""
    columns = (TextColumn(f"{{task.description:{width}}}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Over all the time: of rich's own 30 seconds, a training takes more.
    return Progress(*columns, console=console, transient=transient, speed_estimate_period=float("inf"))
