"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console


def wide_console() -> Console:
    """Standard output; wide enough for long tables where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 180)
