"""SIGTERM and SIGINT ask for an orderly end."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training ended because of a signal, after its step was finished and written.

    Attributes:
        code: the exit code of a process that ends for this reason: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 128 + signum


class Signals:
    """Notes a SIGTERM or SIGINT within a ``with`` block; a second one ends the process at once.

    Attributes:
        received: the number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        # The system's own handlers, so that the next one works even while a call into C hangs.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
