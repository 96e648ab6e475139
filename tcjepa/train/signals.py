"""SIGTERM and SIGINT as a request to save and stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final

#: Signals within this time are one request, forwarded [s].
_PATIENCE: Final = 2.0


class Interrupts:
    """While entered, SIGTERM and SIGINT only set `requested`; a later SIGINT interrupts.

    Schedulers signal every process of a job and torchrun forwards what it gets, so one request to
    stop arrives twice; only a person who presses Ctrl-C again, `_PATIENCE` later, is in a hurry.
    Outside the main thread, where Python allows no signal handlers, it never sets anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _PATIENCE:
            raise KeyboardInterrupt
